"""Pauses and resumes that cannot be, changes that meet each other, and calls to a sandbox that sleeps."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sandkeep.sdk import Client, Process, Sandbox
from sandkeep.sdk.errors import Conflict, NotFound, PauseFailed, SandkeepError
from support.instance import Instance, until
from support.witness import ask, events_of, machine_pids, start_witness, ticks_go_on

OPEN_FILE = """
import os, time
file = open("/home/user/scratch.db", "w+"); file.write("x" * 5000); file.flush()
os.unlink("/home/user/scratch.db")
print("ready", flush=True)
time.sleep(1000)
"""
LIBRARY = """
import ctypes, glob, shutil, time
shutil.copy(glob.glob("/lib/*/libexpat.so.1")[0], "/home/user/libproof.so.1")
library = ctypes.CDLL("/home/user/libproof.so.1")
print("ready", flush=True)
time.sleep(1000)
"""
UPGRADE_LIBRARY = "cp libproof.so.1 fresh && mv fresh libproof.so.1"
UPGRADE_DAEMON = "cp proofd fresh && mv fresh proofd"


def hold_open_file(sandbox: Sandbox) -> Process:
    return ready(sandbox.start_process(["python3", "-c", OPEN_FILE]))


def hold_old_library(sandbox: Sandbox) -> Process:
    process = ready(sandbox.start_process(["python3", "-c", LIBRARY]))
    assert sandbox.exec(UPGRADE_LIBRARY).exit_code == 0
    return process


def hold_old_program(sandbox: Sandbox) -> Process:
    assert sandbox.exec("cp /bin/sleep proofd").exit_code == 0
    process = sandbox.start_process(["/home/user/proofd", "1000"])
    until(lambda: "proofd" in sandbox.exec(f"cat /proc/{process.pid}/comm").stdout)
    assert sandbox.exec(UPGRADE_DAEMON).exit_code == 0
    return process


def ready(process: Process) -> Process:
    assert next(iter(process)).data == b"ready\n"  # type: ignore[union-attr]
    return process


def full(client: Client, **options: Any) -> Sandbox:
    return Sandbox.create(template="test", persistence="full", memory="256MiB", client=client, **options)


def savable(sandbox: Sandbox) -> bool | None:
    sandbox.refresh()
    return next((c.value for c in sandbox.conditions if c.kind == "MemorySavable"), None)


@pytest.mark.parametrize(
    ("hold", "process_name", "path"),
    [
        (hold_open_file, "python3", "/home/user/scratch.db"),
        (hold_old_library, "python3", "/home/user/libproof.so.1"),
        (hold_old_program, "proofd", "/home/user/proofd"),
    ],
    ids=["deleted file", "upgraded library", "upgraded program"],
)
def test_what_cannot_be_saved_is_named_and_runs_on(
    client: Client, instance: Instance, hold: Callable[[Sandbox], Process], process_name: str, path: str
) -> None:
    sandbox = full(client)
    start_witness(sandbox)
    before = ask(sandbox)
    holder = hold(sandbox)
    with pytest.raises(PauseFailed, match=path) as failed:
        sandbox.pause()
    assert f"{process_name} (pid {holder.pid})" in failed.value.message
    assert "or-disk" in (failed.value.hint or "")
    sandbox.refresh()
    assert sandbox.phase == "running"
    assert path in sandbox.reason
    assert savable(sandbox) is False
    ticks_go_on(sandbox)
    assert ask(sandbox)["pid"] == before["pid"]
    assert "sandbox.pause_failed" in events_of(client, sandbox.id)
    assert instance.fsck() == []
    holder.kill()
    holder.wait()
    sandbox.pause()
    sandbox.resume()
    assert ask(sandbox)["pid"] == before["pid"]
    assert savable(sandbox) is True


@pytest.mark.parametrize("how", ["asked", "setting"])
def test_the_fall_back_to_a_stop_is_taken_and_said(client: Client, how: str) -> None:
    sandbox = full(client, pause_or_disk=how == "setting")
    assert sandbox.exec("echo kept > kept").exit_code == 0
    hold_open_file(sandbox)
    sandbox.pause(or_disk=True if how == "asked" else None)
    assert sandbox.phase == "stopped"
    assert sandbox.reason.startswith("stopped instead of paused")
    assert "/home/user/scratch.db" in sandbox.reason
    assert savable(sandbox) is False
    assert machine_pids(sandbox) == set()
    assert sandbox.exec("cat kept").stdout == "kept\n"


def test_many_processes_in_little_memory_are_saved(client: Client) -> None:
    """gVisor's own kernel needs more room to describe them than the sandbox has left."""
    sandbox = Sandbox.create(
        template="test", persistence="full", memory="256MiB", network="none", on_failure="leave", client=client
    )
    sandbox.exec("for i in $(seq 250); do sleep 600 > /dev/null 2>&1 & done")
    sandbox.pause()
    sandbox.resume()
    assert sandbox.exec("grep -lx sleep /proc/[0-9]*/comm | wc -l").stdout == "250\n"


def test_a_command_that_a_pause_cuts_off_is_told_so(client: Client) -> None:
    sandbox = full(client)
    told: list[SandkeepError] = []

    def run() -> None:
        try:
            sandbox.exec("touch begun; sleep 30")
        except SandkeepError as error:
            told.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: sandbox.exec("ls begun").exit_code == 0)
    sandbox.pause()
    thread.join(20)
    assert "the sandbox is pausing" in str(told[0])
    assert "start_process" in (told[0].hint or "")


def test_a_setting_that_was_taken_back_is_not_followed(client: Client) -> None:
    sandbox = full(client, pause_or_disk=True)
    hold_open_file(sandbox)
    with pytest.raises(PauseFailed):
        sandbox.pause(or_disk=False)
    sandbox.update(pause_or_disk=False)
    with pytest.raises(PauseFailed):
        sandbox.pause()
    assert sandbox.exec("true", no_resume=True).exit_code == 0


def flip(file: Path) -> None:
    with open(file, "r+b") as image:
        image.seek(file.stat().st_size // 2)
        byte = image.read(1)[0]
        image.seek(-1, 1)
        image.write(bytes([byte ^ 0x40]))


def test_a_damaged_memory_image_is_never_resumed_and_never_lost(client: Client, instance: Instance) -> None:
    sandbox = full(client)
    start_witness(sandbox)
    before = ask(sandbox)
    sandbox.exec("echo kept > kept")
    sandbox.pause()
    image = next((instance.root / "data/pool/sandboxes" / sandbox.id).rglob("pages.img"))
    flip(image)
    for _ in range(2):
        with pytest.raises(SandkeepError, match=r"damaged.*pages\.img") as refused:
            sandbox.resume()
        assert "sandkeep start" in (refused.value.hint or "")
        sandbox.refresh()
        assert (sandbox.phase, sandbox.hold) == ("paused", "disk")
        assert machine_pids(sandbox) == set()
    with pytest.raises(SandkeepError, match="damaged"):
        sandbox.exec("true")
    assert events_of(client, sandbox.id).count("sandbox.resume_failed") == 3
    assert instance.fsck() == []
    flip(image)  # whole again: the failures must have left it as it was
    sandbox.resume()
    after = ask(sandbox)
    assert (after["pid"], after["ticks"] >= before["ticks"]) == (before["pid"], True)
    sandbox.pause()
    flip(next((instance.root / "data/pool/sandboxes" / sandbox.id).rglob("pages.img")))
    sandbox.start()
    assert sandbox.exec("cat kept; pgrep witness; test -e /proc/$PPID && echo up").stdout == "kept\nup\n"
    assert list((instance.root / "data/pool/sandboxes" / sandbox.id).rglob("pages.img")) == []
    assert instance.fsck() == []


def test_pauses_and_resumes_at_once_are_one(client: Client, instance: Instance) -> None:
    sandbox = full(client)
    start_witness(sandbox)
    pid = ask(sandbox)["pid"]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: Sandbox.get(sandbox.id, client=client).pause(), range(4)))
        sandbox.refresh()
        assert (sandbox.phase, sandbox.hold) == ("paused", "disk")
        assert len(list((instance.root / "data/pool/sandboxes" / sandbox.id).rglob("pages.img"))) == 1
        list(pool.map(lambda _: Sandbox.get(sandbox.id, client=client).resume(), range(4)))
    events = events_of(client, sandbox.id)
    assert (events.count("sandbox.paused"), events.count("sandbox.resumed")) == (1, 1)
    assert ask(sandbox)["pid"] == pid
    assert instance.fsck() == []


@pytest.mark.parametrize("sleep", ["pause to memory", "pause to disk", "stop"])
def test_exec_wakes_what_sleeps_unless_told_otherwise(client: Client, runtime: str, sleep: str) -> None:
    to_disk = sleep == "pause to disk" and runtime == "gvisor"
    sandbox = Sandbox.create(
        template="test", runtime=runtime, memory="256MiB", persistence="full" if to_disk else "volume", client=client
    )
    sandbox.files.write("/home/user/note", "kept")
    if sleep == "stop":
        sandbox.stop()
    else:
        sandbox.pause(hold="disk" if to_disk else "memory")
    phase = sandbox.phase
    calls: list[Callable[[], object]] = [
        lambda: sandbox.exec("true", no_resume=True),
        lambda: sandbox.start_process("true", no_resume=True),
    ]
    for call in calls:
        with pytest.raises(Conflict, match=phase):
            call()
        sandbox.refresh()
        assert sandbox.phase == phase, "no_resume woke it"
    with ThreadPoolExecutor(4) as pool:  # several callers, one waking
        done = list(pool.map(lambda _: sandbox.exec("cat note").stdout, range(4)))
    assert done == ["kept"] * 4
    sandbox.refresh()
    assert sandbox.phase == "running"
    assert events_of(client, sandbox.id).count("sandbox.started" if sleep == "stop" else "sandbox.resumed") == (
        2 if sleep == "stop" else 1
    )


def outcome(work: Callable[[], object], into: list[object]) -> threading.Thread:
    def body() -> None:
        try:
            into.append(work())
        except SandkeepError as error:
            into.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def test_delete_during_create_leaves_nothing(client: Client, runtime: str, instance: Instance) -> None:
    for number in range(3):
        made: list[object] = []
        name = f"cut-{runtime}-{number}"
        thread = outcome(
            lambda name=name: Sandbox.create(name, template="test", runtime=runtime, client=client),  # type: ignore[misc]
            made,
        )
        until(lambda name=name: next(Sandbox.list(name=name, client=client), None), wait=0.001).delete()
        thread.join(30)
        assert isinstance(made[0], Sandbox | NotFound | Conflict), made
        with pytest.raises(NotFound):
            Sandbox.get(name, client=client)
    assert instance.fsck() == []


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_delete_during_a_pause_or_resume_leaves_nothing(client: Client, instance: Instance, verb: str) -> None:
    sandbox = full(client)
    sandbox.exec("head -c 64M /dev/urandom > /dev/shm/ballast")
    if verb == "resume":
        sandbox.pause()
    done: list[object] = []
    other = Sandbox.get(sandbox.id, client=client)
    thread = outcome(getattr(other, verb), done)

    def under_way() -> bool:
        sandbox.refresh()
        return sandbox.phase in ("pausing", "resuming") or bool(done)

    until(under_way, wait=0.001)
    sandbox.delete()
    thread.join(30)
    assert done[0] is None or isinstance(done[0], NotFound | Conflict), done
    with pytest.raises(NotFound):
        sandbox.refresh()
    assert machine_pids(sandbox) == set()
    assert not (instance.root / "data/pool/sandboxes" / sandbox.id).exists()
    assert instance.fsck() == []
