"""Snapshots, forks and rollbacks with memory and processes (gVisor): ours and the runtime's checkpoint and restore in turns."""

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from bench.bare import Machine
from bench.lifecycle import Bench
from bench.measure import BARE, OURS, alternating
from sandkeep.domain.quantities import MIB
from sandkeep.sdk import Sandbox

SIZES = (64, 256, 1024)
_BESIDE = 512
"""MiB of limit beside what is dirty."""
_SHARE = {1: 1, 10: 4, 100: 10}
_TICKER = """
import os, signal, sys, time
kept, worst, last = os.urandom({size} << 20), 0.0, time.time()
def tell(*_):
    global worst, last
    open("/dev/shm/new", "w").write(str(worst))
    os.rename("/dev/shm/new", "/dev/shm/gap")
    worst, last = 0.0, time.time()
signal.signal(signal.SIGUSR1, tell)
open("/dev/shm/ready", "w").close()
while True:
    time.sleep(0.001)
    now = time.time()
    worst, last = max(worst, now - last), now
"""
_START = "python3 -c '{program}' > /dev/null 2>&1 & echo $! > /dev/shm/pid"
_GAP = "kill -USR1 $(cat /dev/shm/pid); until test -e /dev/shm/gap; do :; done; cat /dev/shm/gap; rm /dev/shm/gap"
_READY = "until test -e /dev/shm/ready; do sleep 0.1; done"


def felt(bench: Bench) -> None:
    """The longest gap between two ticks of a millisecond inside, beside memory that cannot be made smaller."""
    for size in SIZES:
        memory = size + _BESIDE
        bare, limits = bench.bare, bench.bare.limits
        bare.limits = replace(limits, memory=memory * MIB)
        sandbox, machine = bench.sandbox(memory=f"{memory}MiB"), bench.machine()
        bare.limits = limits
        line = _START.format(program=_TICKER.format(size=size))
        for run in (
            lambda command: sandbox.exec(command, user="root"),
            lambda command: machine.ask("sh", "-c", command),
        ):
            run(line)
            run(_READY)

        def ours(sandbox: Sandbox = sandbox, size: int = size) -> None:
            sandbox.exec(_GAP, user="root")
            kept = sandbox.snapshot(kind="full")
            gap = float(sandbox.exec(_GAP, user="root").stdout)
            bench.results.add(f"felt-{size}", bench.runtime, OURS, gap * 1000)
            sandbox.snapshots.delete(kept)

        def bared(machine: Machine = machine, size: int = size) -> None:
            machine.ask("sh", "-c", _GAP)
            image = machine.save()
            gap = float(machine.ask("sh", "-c", _GAP))
            bench.results.add(f"felt-{size}", bench.runtime, BARE, gap * 1000)
            shutil.rmtree(image)
            machine.drop_kept()

        alternating(max(2, bench.rounds // (1 if size < 1024 else 4)), ours, bared)
        sandbox.delete()
        machine.remove()


def twins(bench: Bench) -> None:
    for count in (1, 10):
        forks(bench, count)
    _rollback(bench)


def hundred(bench: Bench) -> None:
    forks(bench, 100)


def forks(bench: Bench, count: int) -> None:
    """From an idle source that runs, whose moment is kept for it. Bare: its checkpoint, and a restore of each."""
    source, machine = bench.sandbox(), bench.machine()
    made: list[Sandbox] = []
    machines: list[Machine] = []

    def ours() -> None:
        made[:] = source.fork(count, kind="full")
        with ThreadPoolExecutor(count) as threads:
            assert not any(done.exit_code for done in threads.map(lambda fork: fork.exec(["true"]), made))

    def bare() -> None:
        image = machine.save()

        def one(fresh: Machine) -> None:
            fresh.clone(machine.kept[-1])
            fresh.go_on_from(image)

        with ThreadPoolExecutor(count) as threads:
            list(threads.map(one, machines))

        async def answers() -> None:
            await asyncio.gather(*(fresh.answer("true") for fresh in machines))

        bench.bare.run(answers())

    def clear() -> None:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(Sandbox.delete, made))
        for kept in source.snapshots.list():
            source.snapshots.delete(kept)
        for fresh in machines:
            fresh.remove()
        machine.drop_saved()
        machine.drop_kept()
        made.clear()
        machines.clear()

    bench.alternate(
        f"fork-memory-{count}",
        ours,
        bare,
        before_bare=lambda: machines.extend(bench.bare.machine() for _ in range(count)),
        after=clear,
        share=_SHARE[count],
    )
    source.delete()
    machine.remove()


def _rollback(bench: Bench) -> None:
    """Back to a moment with memory, the moment before kept with its own. Bare: checkpoint, kill, restore."""
    sandbox, machine = bench.sandbox(), bench.machine()
    base, first = sandbox.snapshot("base", kind="full"), machine.save("first")

    def ours() -> None:
        sandbox.rollback(base)
        assert sandbox.exec(["true"]).exit_code == 0

    def bare() -> None:
        machine.save()
        machine.end()
        machine.renew()
        machine.make_group()
        machine.go_on_from(first)
        machine.ask("true")

    def clear() -> None:
        for kept in sandbox.snapshots.list():
            if kept.id != base.id:
                sandbox.snapshots.delete(kept)
        machine.drop_saved()

    bench.alternate("rollback-memory", ours, bare, after=clear)
    sandbox.delete()
    shutil.rmtree(first)
    machine.remove()
