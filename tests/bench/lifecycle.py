"""Create, exec, hold in memory, stop and start, delete: ours and the bare runtime's in turns."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench.bare import Bare, Machine
from bench.measure import BARE, OURS, Results, alternating
from sandkeep.sdk import AsyncClient, AsyncSandbox, Client, Sandbox

BURST = 20


@dataclass(frozen=True)
class Bench:
    """What every measurement needs. template, memory: of the sandboxes."""

    client: Client
    bare: Bare
    runtime: str
    results: Results
    rounds: int
    template: str = "test"
    memory: str = "256MiB"

    def sandbox(self, persistence: str = "volume", memory: str | None = None) -> Sandbox:
        return Sandbox.create(
            template=self.template,
            runtime=self.runtime,  # type: ignore[arg-type]
            memory=memory or self.memory,
            persistence=persistence,  # type: ignore[arg-type]
            client=self.client,
        )

    def machine(self) -> Machine:
        """One that runs and whose agent answers."""
        made = self.bare.machine()
        made.clone()
        made.start()
        made.introduce()
        return made

    def ours(self, key: str, work: Callable[[], object]) -> Callable[[], None]:
        def measured() -> None:
            with self.results.timed(key, self.runtime, OURS):
                work()

        return measured

    def bared(self, key: str, work: Callable[[], object]) -> Callable[[], None]:
        def measured() -> None:
            with self.results.timed(key, self.runtime, BARE):
                work()

        return measured

    def alternate(
        self,
        key: str,
        ours: Callable[[], object],
        bare: Callable[[], object],
        *,
        before_ours: Callable[[], object] | None = None,
        before_bare: Callable[[], object] | None = None,
        after: Callable[[], object] | None = None,
        share: int = 1,
    ) -> None:
        """Rounds of both, in turns; what comes before and after is not measured. share: so many times fewer rounds."""

        def side(before: Callable[[], object] | None, measured: Callable[[], None]) -> Callable[[], None]:
            def act() -> None:
                if before:
                    before()
                measured()
                if after:
                    after()

            return act

        alternating(
            max(2, self.rounds // share),
            side(before_ours, self.ours(key, ours)),
            side(before_bare, self.bared(key, bare)),
        )


def create_and_delete(bench: Bench) -> None:
    """Each round makes one sandbox and one bare machine, and takes them away."""

    def ours() -> None:
        with bench.results.timed("create", bench.runtime, OURS):
            sandbox = bench.sandbox()
            assert sandbox.exec(["true"]).exit_code == 0
        with bench.results.timed("delete", bench.runtime, OURS):
            sandbox.delete()

    def bare() -> None:
        machine = bench.bare.machine()
        with bench.results.timed("create", bench.runtime, BARE):
            machine.clone()
            machine.start()
            machine.exec("true")
        with bench.results.timed("delete", bench.runtime, BARE):
            machine.delete()
            machine.destroy_disk()
        machine.remove()

    alternating(bench.rounds, ours, bare)


def exec_true(bench: Bench) -> None:
    sandbox, machine = bench.sandbox(), bench.machine()

    def ours() -> None:
        assert sandbox.exec(["true"]).exit_code == 0

    ours()
    alternating(3 * bench.rounds, bench.ours("exec", ours), bench.bared("exec", lambda: machine.exec("true")))
    sandbox.delete()
    machine.remove()


def hold_in_memory(bench: Bench) -> None:
    sandbox, machine = bench.sandbox(), bench.machine()

    def ours() -> None:
        bench.ours("pause-memory", lambda: sandbox.pause(hold="memory"))()
        bench.ours("resume-memory", sandbox.resume)()

    def bare() -> None:
        bench.bared("pause-memory", machine.pause)()
        bench.bared("resume-memory", machine.resume)()

    alternating(bench.rounds, ours, bare)
    sandbox.delete()
    machine.remove()


def stop_and_start(bench: Bench) -> None:
    sandbox, machine = bench.sandbox(), bench.machine()

    def start() -> None:
        sandbox.start()
        assert sandbox.exec(["true"]).exit_code == 0

    def ours() -> None:
        bench.ours("stop", sandbox.stop)()
        bench.ours("start", start)()

    def start_bare() -> None:
        machine.start()
        machine.exec("true")

    def bare() -> None:
        bench.bared("stop", machine.delete)()
        machine.end()
        machine.group.remove()
        machine.make_group()
        bench.bared("start", start_bare)()

    alternating(bench.rounds, ours, bare)
    sandbox.delete()
    machine.remove()


def burst(bench: Bench) -> None:
    """All at once, by one asynchronous client; the bare ones by as many threads."""

    async def ours() -> None:
        async with AsyncClient(bench.client.url, bench.client.transport.address.key) as client:
            await client.version()

            async def one() -> AsyncSandbox:
                made = await AsyncSandbox.create(
                    template=bench.template,
                    runtime=bench.runtime,  # type: ignore[arg-type]
                    memory=bench.memory,
                    client=client,
                )
                assert (await made.exec(["true"])).exit_code == 0
                return made

            with bench.results.timed("burst", bench.runtime, OURS):
                made = await asyncio.gather(*(one() for _ in range(BURST)))
            await asyncio.gather(*(sandbox.delete() for sandbox in made))

    def bare() -> None:
        machines = [bench.bare.machine() for _ in range(BURST)]

        def one(machine: Machine) -> None:
            machine.clone()
            machine.start()
            machine.exec("true")

        with ThreadPoolExecutor(BURST) as threads:
            with bench.results.timed("burst", bench.runtime, BARE):
                list(threads.map(one, machines))
        for machine in machines:
            machine.remove()

    alternating(max(2, bench.rounds // 5), lambda: bench.bare.run(ours()), bare)
