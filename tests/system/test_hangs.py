"""What hangs holds up nothing else, and ends without a human: runtimes, agents, programs, the daemons themselves."""

import contextlib
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import NotFound, PauseFailed, SandkeepError
from support.instance import Instance, until
from support.machines import program
from support.witness import machine_pids, settled_fsck


def made(client: Client, runtime: str, **options: str) -> Sandbox:
    return Sandbox.create(template="test", runtime=runtime, memory="128MiB", client=client, **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def frozen(pids: set[int]) -> Iterator[None]:
    """SIGSTOP, and afterwards SIGCONT to those that are left."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def outcome(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    seen: list[object] = []

    def body() -> None:
        try:
            seen.append(work())
        except SandkeepError as error:
            seen.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    return thread, seen


def gone(client: Client, sandbox: Sandbox) -> bool:
    with contextlib.suppress(NotFound):
        Sandbox.get(sandbox.id, client=client)
        return False
    return True


@pytest.mark.parametrize("ends_by", ["delete", pytest.param("stop", marks=pytest.mark.long)])
def test_a_machine_that_hangs_is_ended(client: Client, instance: Instance, runtime: str, ends_by: str) -> None:
    """Sentry or container, all its processes stopped by the host: no agent answers."""
    sandbox, other = made(client, runtime), made(client, "runc")
    sandbox.exec("echo kept > kept; sync kept")
    with frozen(machine_pids(sandbox)):
        waiting, answers = outcome(lambda: sandbox.exec("true", no_resume=True))
        assert other.exec("echo well").stdout == "well\n"
        if ends_by == "delete":
            sandbox.delete()
            assert gone(client, sandbox)
        else:
            Sandbox.get(sandbox.id, client=client).stop()
        waiting.join(30)
        assert not waiting.is_alive(), "a call to it waits for ever"
        assert isinstance(answers[0], SandkeepError)
    assert machine_pids(sandbox) == set()
    if ends_by == "stop":
        assert sandbox.exec("cat kept").stdout == "kept\n"
    settled_fsck(instance)


def test_a_pause_of_what_hangs_fails_and_holds_nothing_up(client: Client, instance: Instance) -> None:
    sandbox, other = made(client, "gvisor", persistence="full"), made(client, "runc")
    with frozen(machine_pids(sandbox)):
        pausing, answers = outcome(sandbox.pause)
        assert other.exec("echo well").stdout == "well\n"
        pausing.join(60)
        assert isinstance(answers[0], PauseFailed), answers
    assert sandbox.exec("echo again").stdout == "again\n"
    sandbox.pause()
    sandbox.resume()
    assert instance.fsck() == []


@pytest.mark.long
def test_a_call_to_a_guest_that_stands_still_ends_and_says_so(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = made(client, runtime)
    assert sandbox.exec("true").exit_code == 0
    with frozen(machine_pids(sandbox)):
        with pytest.raises(SandkeepError, match="does not answer"):
            sandbox.exec("true")
        assert not guest_ready(sandbox)
        assert "does not answer" in instance.run("why", sandbox.id).stdout
    assert sandbox.exec("echo well").stdout == "well\n"
    assert guest_ready(sandbox)
    settled_fsck(instance)


def guest_ready(sandbox: Sandbox) -> bool:
    sandbox.refresh()
    return next(one.value for one in sandbox.conditions if one.kind == "GuestReady")


@pytest.fixture
def watched(instance: Instance) -> Iterator[Instance]:
    """Daemons that are silent for some seconds are started again."""
    instance.run("down")
    instance.env["SANDKEEP_WATCHDOG"] = "6"
    instance.ensure_up()
    try:
        yield instance
    finally:
        instance.run("down")
        del instance.env["SANDKEEP_WATCHDOG"]
        instance.ensure_up()


@pytest.mark.long
@pytest.mark.parametrize("daemon", ["runner", "server"])
def test_a_daemon_that_stands_still_is_started_again(watched: Instance, client: Client, daemon: str) -> None:
    sandbox = made(client, "gvisor")
    process = sandbox.start_process("sleep 1000").pid
    before = watched.pid(daemon)
    assert before
    os.kill(before, signal.SIGSTOP)
    until(lambda: watched.pid(daemon) not in (None, before), 60)
    until(lambda: readyz(watched) == 200, 20)
    assert process in [each.pid for each in sandbox.processes()]
    sandbox.stop()
    settled_fsck(watched)


@pytest.fixture
def slow_runc(client: Client, instance: Instance) -> Iterator[Path]:
    """runc is a program that never ends while this file exists."""
    switch, wrapper = instance.root / "slow", instance.root / "slow-runc"
    switch.touch()
    real = program("runc")
    wrapper.write_text(
        f'#!/bin/sh\ncase "$*" in *" run "*) while [ -e {switch} ]; do sleep 0.1; done;; esac\nexec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    settings = instance.root / "etc" / f"{instance.name}.toml"
    before = settings.read_text()
    settings.write_text(before + f'\nrunc = "{wrapper}"\n')
    instance.kill("runner")
    instance.ensure_up()
    try:
        yield switch
    finally:
        switch.unlink(missing_ok=True)
        settings.write_text(before)
        instance.kill("runner")
        instance.ensure_up()


@pytest.mark.long
def test_a_program_that_never_ends_is_cut_by_a_delete(client: Client, instance: Instance, slow_runc: Path) -> None:
    creating, answers = outcome(lambda: Sandbox.create("slow", template="test", runtime="runc", client=client))
    until(lambda: Sandbox.get("slow", client=client) if list(Sandbox.list(name="slow", client=client)) else None)
    until(lambda: str(slow_runc) in _commands())
    other = made(client, "gvisor")
    assert other.exec("echo well").stdout == "well\n"
    Sandbox.get("slow", client=client).delete()
    creating.join(20)
    assert isinstance(answers[0], SandkeepError), answers
    assert list(Sandbox.list(name="slow", client=client)) == []
    other.delete()
    settled_fsck(instance)


def _commands() -> str:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(file.read_text(errors="replace"))
    return "\n".join(found)


@pytest.mark.long
def test_a_program_that_never_ends_has_a_deadline(client: Client, instance: Instance, slow_runc: Path) -> None:
    creating, answers = outcome(lambda: Sandbox.create("slow", template="test", runtime="runc", client=client))
    creating.join(150)
    assert isinstance(answers[0], SandkeepError), answers
    assert list(Sandbox.list(name="slow", client=client)) == []
    settled_fsck(instance)


def readyz(instance: Instance) -> int:
    try:
        with urllib.request.urlopen(instance.config["url"] + "/readyz", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:
        return 0


def test_a_frozen_runner_holds_up_no_call_that_needs_none(client: Client, instance: Instance) -> None:
    sandbox = made(client, "runc")
    assert sandbox.exec("true").exit_code == 0
    pid = instance.pid("runner")
    assert pid
    with frozen({pid}):
        assert sandbox.exec("echo well").stdout == "well\n"
        assert Sandbox.get(sandbox.id, client=client).phase == "running"
        assert readyz(instance) == 503
        stopping, answers = outcome(sandbox.stop)
        assert Sandbox.get(sandbox.id, client=client).id == sandbox.id
    stopping.join(30)
    assert answers == [None]
    assert sandbox.phase == "stopped"
    until(lambda: readyz(instance) == 200, 20)
    settled_fsck(instance)


def _frozen_server(client: Client, instance: Instance, seconds: float) -> None:
    """A client that goes on with its heartbeats keeps its sandbox, though nobody could take them."""
    grace = Sandbox.create(
        template="test", runtime="runc", persistence="ephemeral", memory="128MiB", grace=seconds / 2, client=client
    )
    kept = made(client, "gvisor")
    kept.heartbeat()
    pid = instance.pid("server")
    assert pid
    beating = threading.Event()

    def beat() -> None:
        while not beating.wait(0.3):
            with contextlib.suppress(SandkeepError):
                grace.heartbeat()

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with frozen({pid}):
            end = time.monotonic() + seconds
            until(lambda: time.monotonic() > end, seconds + 5, wait=0.1)
        assert grace.exec("echo alive").stdout == "alive\n"
        end = time.monotonic() + 2.5
        until(lambda: time.monotonic() > end, 5, wait=0.1)  # some ticks of the timers
        grace.refresh()
        assert (grace.phase, kept.exec("echo alive").stdout) == ("running", "alive\n")
    finally:
        beating.set()
        heart.join()
    settled_fsck(instance)


@pytest.mark.long
def test_a_server_that_was_frozen_deletes_nothing(client: Client, instance: Instance) -> None:
    _frozen_server(client, instance, 8)


@pytest.mark.long
def test_a_server_that_was_frozen_for_half_a_minute_deletes_nothing(client: Client, instance: Instance) -> None:
    _frozen_server(client, instance, 30)
