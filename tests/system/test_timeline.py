"""Timelines on the real runtimes: what is made when, what goes, and what it gives back."""

import contextlib
import json
import os
import signal
from datetime import datetime, timedelta
from typing import Any

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import NoCapacity, NotFound
from support.instance import Instance, pool_with_only, until
from support.witness import machine_pids

OUT_OF_MEMORY = "a = []\nwhile True: a.append(bytes(1 << 20) + b'x')"


def box(client: Client, runtime: str, **options: Any) -> Sandbox:
    return Sandbox.create(template="test", runtime=runtime, memory="128MiB", disk="512MiB", client=client, **options)  # type: ignore[arg-type]


def write(sandbox: Sandbox, text: str, path: str = "/home/user/state") -> None:
    assert sandbox.exec(f"echo {text} > {path}").exit_code == 0


def read(sandbox: Sandbox, path: str = "/home/user/state") -> str:
    return sandbox.exec(f"cat {path}").stdout.strip()


def causes(sandbox: Sandbox) -> list[str]:
    return [one.cause for one in sandbox.snapshots.list()]


def passed(sandbox: Sandbox, due: datetime) -> bool:
    """That moment, and some ticks of the server."""
    found = sandbox.timeline.show().next_at
    return found is not None and found > due + timedelta(seconds=2)


def kinds(sandbox: Sandbox) -> list[str]:
    return [event.kind for event in sandbox.events()]


BOTH = pytest.mark.parametrize("runtime", ["gvisor", pytest.param("runc", marks=pytest.mark.long)])


@BOTH
def test_on_schedule_only_what_changed_and_the_right_ones_stay(
    client: Client, instance: Instance, runtime: str
) -> None:
    sandbox = box(client, runtime)
    write(sandbox, "one")
    sandbox.timeline.set(every=5, keep_last=2, min_age=0)
    until(lambda: causes(sandbox) == ["schedule"], 30)
    due = sandbox.timeline.show().next_at
    assert due is not None
    quiet = box(client, runtime)  # is made while the first one's next moments pass
    quiet.timeline.set(every=5)
    until(lambda: causes(quiet) == ["schedule"], 30)
    until(lambda: passed(sandbox, due), 30)
    assert causes(sandbox) == ["schedule"], "nothing in it changed"
    first = sandbox.snapshots.list()[0]
    for number in range(2):
        newest = sandbox.snapshots.list()[-1].id
        write(sandbox, str(number))
        until(lambda newest=newest: sandbox.snapshots.list()[-1].id != newest, 30)  # type: ignore[misc]
    until(lambda: len(sandbox.snapshots.list()) == 2, 30)
    until(lambda: "snapshot.pruned" in kinds(sandbox))
    with pytest.raises(NotFound):
        sandbox.snapshots.get(first)
    sandbox.timeline.off()
    sandbox.rollback(sandbox.snapshots.list()[0], keep_before=False)
    assert read(sandbox) in "01"
    assert instance.fsck() == []


@pytest.mark.long
@pytest.mark.parametrize("daemons", [("server",), ("runner",), ("server", "runner")])
def test_daemons_killed_around_a_due_moment(client: Client, instance: Instance, daemons: tuple[str, ...]) -> None:
    """What is due is made once, whoever died meanwhile."""
    sandbox = box(client, "runc")
    sandbox.timeline.set(every=5)
    instance.kill(*daemons)
    instance.ensure_up()
    until(lambda: causes(sandbox) == ["schedule"], 30)
    due = sandbox.timeline.show().next_at
    assert due is not None
    instance.kill(*daemons)
    instance.ensure_up()
    until(lambda: passed(sandbox, due), 30)
    assert causes(sandbox) == ["schedule"]
    assert instance.fsck() == []


@BOTH
def test_at_the_end_of_a_machine(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime, on_failure="restart")
    sandbox.timeline.set(on_exit=True, on_crash=True)
    write(sandbox, "stopped")
    sandbox.stop()
    until(lambda: causes(sandbox) == ["exit"])
    sandbox.stop()
    assert causes(sandbox) == ["exit"]
    write(sandbox, "crashed")
    assert sandbox.exec("sync").exit_code == 0
    for pid in machine_pids(sandbox):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: "crash" in causes(sandbox), 30)
    sandbox.wait("running", timeout=60)
    crash = sandbox.snapshots.list()[-1]
    write(sandbox, "went on")
    sandbox.rollback(crash, keep_before=False)
    assert read(sandbox) == "crashed"
    assert instance.fsck() == []


@BOTH
def test_when_memory_runs_out(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime, on_failure="stop")
    sandbox.timeline.set(on_out_of_memory=True)
    write(sandbox, "before")
    sandbox.exec(["python3", "-c", OUT_OF_MEMORY], timeout=60)
    until(lambda: causes(sandbox) == ["out_of_memory"], 40)
    write(sandbox, "after")
    sandbox.rollback(sandbox.snapshots.list()[0], keep_before=False)
    assert read(sandbox) == "before"
    assert instance.fsck() == []


def test_before_a_command(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime, name="dev")
    write(sandbox, "fine")
    assert sandbox.exec("echo broken > /home/user/state", snapshot_first=True).exit_code == 0
    instance.run("exec", "dev", "--snapshot-first", "--", "sh", "-c", "echo worse > /home/user/state")
    first, second = sandbox.snapshots.list()
    assert {first.cause, second.cause} == {"exec"}
    assert read(sandbox) == "worse"
    sandbox.rollback(second, keep_before=False)
    assert read(sandbox) == "broken"
    sandbox.rollback(first, keep_before=False)
    assert read(sandbox) == "fine"


def used(client: Client) -> int:
    capacity = client.node().capacity
    return capacity.pool_total - capacity.pool_free


@pytest.mark.long
def test_twenty_go_and_their_space_comes_back(client: Client, instance: Instance) -> None:
    sandbox = box(client, "runc", name="dev")
    sandbox.snapshot("base")
    before = used(client)
    for _ in range(20):
        assert sandbox.exec("head -c 4M /dev/urandom > /home/user/data; sync").exit_code == 0
        sandbox.snapshots.create(cause="exec")
    assert sandbox.exec("rm /home/user/data; sync").exit_code == 0
    until(lambda: used(client) - before >= 70 << 20, 30)
    sandbox.timeline.set(budget="100GiB")
    sandbox.timeline.prune(plan=True)  # measures them as they are now
    listed = sandbox.snapshots.list()
    assert all(4 << 20 <= (one.written or 0) < 5 << 20 for one in listed[1:])
    assert all(4 << 20 <= (one.freed or 0) < 5 << 20 for one in listed[1:])
    instance.run("timeline", "set", "dev", "--budget", "1MiB", "--min-age", "1h")
    planned = json.loads(instance.run("timeline", "prune", "dev", "--plan", "--json").stdout)
    assert all("too young" in item["keep"] for item in planned["items"])
    sandbox.timeline.set(min_age=0)
    until(lambda: len(sandbox.snapshots.list()) == 2, 60)
    assert [one.name for one in sandbox.snapshots.list()] == ["base", None], "the named one, and the newest"
    sandbox.timeline.set(budget=None, keep_last=1, asked_too=True)
    assert [item.keep for item in sandbox.timeline.prune(plan=True).items] == [["named"], ["last"]]
    sandbox.snapshots.delete(sandbox.snapshots.list()[-1])
    until(lambda: used(client) - before < 2 << 20, 30)
    assert instance.fsck() == []


def test_a_full_pool_and_a_deleted_sandbox(client: Client, instance: Instance) -> None:
    sandbox = box(client, "runc")
    write(sandbox, "before")
    with pool_with_only(instance, 16 << 20):
        with pytest.raises(NoCapacity):
            sandbox.exec("echo ran > /home/user/state", snapshot_first=True)
        assert read(sandbox) == "before", "what cannot be kept first does not run"
        sandbox.timeline.set(every=5, on_exit=True)
        until(lambda: "snapshot.failed" in kinds(sandbox), 30)
        sandbox.stop()
        sandbox.refresh()
        assert (sandbox.phase, causes(sandbox)) == ("stopped", []), "a stop is one all the same"
    until(lambda: causes(sandbox) == ["schedule"], 60)
    write(sandbox, "after")
    other = box(client, "runc")
    sandbox.delete()
    other.timeline.set(every=5)
    until(lambda: causes(other) == ["schedule"], 30)
    assert instance.fsck() == []
