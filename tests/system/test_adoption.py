"""Daemons and machines die at any moment: running sandboxes do not notice, paused ones stay, nothing is left behind."""

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import NotFound, SandkeepError
from support.faults.victims import resolver_pid
from support.instance import Instance, until
from support.witness import ask, events_of, machine_pids, read_ticks, settled_fsck, start_witness

SETTLED = ("running", "paused", "stopped", "failed")


def kill(instance: Instance, *names: str) -> None:
    """kill -9 all of them, then wait until the platform serves again."""
    for name in names:
        pid = instance.pid(name)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: not Path(f"/proc/{pid}/exe").exists(), 5)
    instance.ensure_up()


def create(client: Client, runtime: str, **options: object) -> Sandbox:
    return Sandbox.create(template="test", runtime=runtime, memory="256MiB", client=client, **options)  # type: ignore[arg-type]


def test_dying_daemons_are_not_noticed(client: Client, instance: Instance) -> None:
    """Runner, server, both, keeper, all: after each, the same processes go on, their output streams have no gap, and
    what was paused is paused and resumes."""
    running = {runtime: create(client, runtime) for runtime in ("gvisor", "runc")}
    frozen = create(client, "runc")
    saved = create(client, "gvisor", persistence="full")
    before: dict[str, int] = {}
    for sandbox in (*running.values(), frozen, saved):
        start_witness(sandbox).detach()
        before[sandbox.id] = ask(sandbox)["pid"]
    frozen.pause(hold="memory")
    saved.pause()
    held = machine_pids(frozen)
    streams = {sandbox: sandbox.attach(before[sandbox.id]) for sandbox in running.values()}
    numbers = {sandbox: read_ticks(stream, 5) for sandbox, stream in streams.items()}
    for victims in (["runner"], ["server"], ["runner", "server"], ["keeper"]):
        kill(instance, *victims)
        for sandbox, stream in streams.items():
            told = ask(sandbox)
            assert told["pid"] == before[sandbox.id], f"it was restarted when {victims} died"
            assert told["gap"] < 2, f"it stood still when {victims} died"
            numbers[sandbox] += read_ticks(stream, told["ticks"] + 2)
        frozen.refresh()
        saved.refresh()
        assert (frozen.phase, frozen.hold, saved.phase, saved.hold) == ("paused", "memory", "paused", "disk")
        assert machine_pids(frozen) == held
    settled_fsck(instance)
    for seen in numbers.values():
        assert seen == list(range(1, seen[-1] + 1)), "a stream lost or repeated output"
    for sandbox in (frozen, saved):
        sandbox.resume()
        assert ask(sandbox)["pid"] == before[sandbox.id]
    for seen_id in before:
        assert "sandbox.exited" not in events_of(client, seen_id)


def end_machine(pids: set[int]) -> None:
    """From outside, as an operator or the kernel would; some go when the first one does."""
    assert pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_dead_machine_is_reported_and_its_disk_goes_on(client: Client, runtime: str, instance: Instance) -> None:
    volume = create(client, runtime, on_failure="stop")
    ephemeral = create(client, runtime, persistence="ephemeral")
    volume.exec("echo kept > kept; sync")
    for sandbox in (volume, ephemeral):
        end_machine(machine_pids(sandbox))
    volume.wait("stopped", timeout=10)
    assert "machine ended" in volume.reason
    assert "disk was kept" in volume.reason
    assert "sandbox.exited" in events_of(client, volume.id)
    until(lambda: gone(client, ephemeral.id), 10)
    assert events_of(client, ephemeral.id)[-1] == "sandbox.deleted"
    settled_fsck(instance)
    volume.start()
    assert volume.exec("cat kept").stdout == "kept\n"


def test_a_machine_that_died_while_nobody_looked(client: Client, runtime: str, instance: Instance) -> None:
    volume = create(client, runtime, on_failure="stop")
    ephemeral = create(client, runtime, persistence="ephemeral")
    held = create(client, runtime, on_failure="stop")
    held.pause(hold="memory")
    pids = machine_pids(volume) | machine_pids(ephemeral) | machine_pids(held)
    instance.run("down")
    end_machine(pids)
    instance.ensure_up()
    volume.wait("stopped", timeout=10)
    assert "gone when the node came back" in volume.reason
    until(lambda: gone(client, ephemeral.id), 10)
    with contextlib.suppress(SandkeepError):
        held.resume()  # version 1's freezer lets what it holds die only now
    held.wait("stopped", timeout=10)
    settled_fsck(instance)
    for sandbox in (volume, held):
        assert sandbox.exec("true").exit_code == 0


def test_fsck_and_sandboxes_do_without_daemons(client: Client, instance: Instance) -> None:
    sandbox = create(client, "gvisor")
    start_witness(sandbox).detach()
    instance.run("down")
    assert instance.fsck() == []
    instance.ensure_up()
    assert ask(sandbox)["gap"] < 2


def answers_names(sandbox: Sandbox) -> bool:
    """The resolver itself answers, if only that it could not find out: there is no name server in the tests' network."""
    code = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2);"
        "s.sendto(bytes.fromhex('123401000001000000000000') + b'\\1a\\0\\0\\1\\0\\1', ('10.0.0.1', 53));"
        "assert s.recv(512)[:2] == b'\\x12\\x34'"
    )
    return sandbox.exec(["python3", "-c", code]).exit_code == 0


def test_a_dead_resolver_is_back_within_seconds(client: Client, instance: Instance) -> None:
    sandbox = create(client, "runc")
    until(lambda: answers_names(sandbox), 10)
    pid = until(lambda: resolver_pid(instance))
    os.kill(pid, signal.SIGKILL)
    died = time.monotonic()
    until(lambda: answers_names(sandbox), 10)
    assert time.monotonic() - died < 5
    assert resolver_pid(instance) != pid
    pid = resolver_pid(instance)
    kill(instance, "runner", "server")
    assert answers_names(sandbox)
    assert resolver_pid(instance) == pid, "the resolver did not outlive the daemons"


def gone(client: Client, sandbox_id: str) -> bool:
    try:
        Sandbox.get(sandbox_id, client=client)
    except NotFound:
        return True
    return False


class Trial:
    """One request with a kill -9 of daemons in the middle of it. What it answered must be true afterwards."""

    def __init__(self, client: Client, instance: Instance, runtime: str, verb: str) -> None:
        self.client, self.instance, self.runtime, self.verb = client, instance, runtime, verb
        self.name = f"t{random.randrange(1 << 40):x}"
        self.answer: Sandbox | SandkeepError | None = None

    def prepare(self) -> Sandbox | None:
        if self.verb == "create":
            return None
        full = self.runtime == "gvisor"
        sandbox = create(self.client, self.runtime, name=self.name, persistence="full" if full else "volume")
        sandbox.files.write("/home/user/note", self.name)
        sandbox.exec("sync")
        hold = "disk" if full else "memory"
        if self.verb == "resume":
            sandbox.pause(hold=hold)  # type: ignore[arg-type]
        if self.verb == "start":
            sandbox.stop()
        return sandbox

    def request(self, sandbox: Sandbox | None) -> None:
        try:
            if sandbox is None:
                sandbox = create(self.client, self.runtime, name=self.name)
            elif self.verb == "pause":
                sandbox.pause(hold="disk" if self.runtime == "gvisor" else "memory")
            else:
                getattr(sandbox, self.verb)()
            self.answer = sandbox
        except SandkeepError as error:
            self.answer = error

    def run(self, delay: float, victims: tuple[str, ...]) -> None:
        sandbox = self.prepare()
        thread = threading.Thread(target=self.request, args=(sandbox,))
        thread.start()
        thread.join(delay)
        for victim in ("keeper", *victims):  # without its parent: one that has seen many deaths waits before a start
            pid = self.instance.pid(victim)
            if pid:
                os.kill(pid, signal.SIGKILL)
        self.instance.ensure_up()  # at once: the client tries again meanwhile
        thread.join(60)
        assert not thread.is_alive(), f"{self.verb} never came back"
        self.check()

    def check(self) -> None:
        worked = isinstance(self.answer, Sandbox)
        if self.verb == "delete" and worked:
            assert gone(self.client, self.name)
            return
        try:
            sandbox = Sandbox.get(self.name, client=self.client)
        except NotFound:
            assert not worked, f"{self.verb} was acknowledged and is lost"
            assert self.verb in ("create", "delete"), f"a sandbox was lost by an interrupted {self.verb}: {self.answer}"
            return
        try:
            sandbox.wait(*SETTLED, timeout=30)
        except NotFound:
            assert self.verb in ("create", "delete")
            return
        wanted = {"create": "running", "pause": "paused", "resume": "running", "stop": "stopped", "start": "running"}
        if worked:
            assert sandbox.phase == wanted[self.verb], f"{self.verb} was acknowledged, and it is {sandbox.phase}"
        if self.verb != "create":
            assert sandbox.files.read_text("/home/user/note") == self.name
        assert sandbox.exec("true").exit_code == 0
        sandbox.delete()


VERBS = ("create", "pause", "resume", "stop", "start", "delete")


def trials(client: Client, instance: Instance, runtime: str, verb: str, count: int) -> None:
    """Delays cover what the verb takes, and each time begins anew."""
    span = {"pause": 0.35, "resume": 0.45, "create": 0.35, "start": 0.3}.get(verb, 0.12)
    for number in range(count):
        trial = Trial(client, instance, runtime, verb)
        victims = random.choice([("runner",), ("runner",), ("server",), ("runner", "server")])
        delay = span * (number + random.random()) / count
        try:
            trial.run(delay, victims)
            if number % 4 == 0:
                settled_fsck(instance)
        except BaseException as error:
            error.add_note(
                f"{runtime} {verb} {trial.name}, {victims} killed after {delay:.3f} s; answer {trial.answer!r}"
            )
            raise


@pytest.mark.parametrize(
    ("runtime", "verb"),
    [
        pytest.param(runtime, verb, marks=[] if (runtime, verb) == ("gvisor", "resume") else [pytest.mark.long])
        for runtime, verb in [*(("gvisor", verb) for verb in VERBS), ("runc", "create"), ("runc", "stop")]
    ],
)
def test_a_kill_in_the_middle_loses_nothing(client: Client, instance: Instance, runtime: str, verb: str) -> None:
    trials(client, instance, runtime, verb, 1)


@pytest.mark.long
@pytest.mark.parametrize("verb", VERBS)
def test_many_kills_in_the_middle_lose_nothing(client: Client, instance: Instance, runtime: str, verb: str) -> None:
    trials(client, instance, runtime, verb, 20)
