"""Limits are enforced from outside, reported when they are met, told truthfully inside, and can be changed while it runs."""

import time
from pathlib import Path
from typing import Any

import pytest

from sandkeep.domain.sandbox import Limits
from sandkeep.drivers.runtime._oci.cgroup import Group, Groups
from sandkeep.drivers.runtime._oci.layout import detect
from sandkeep.drivers.runtime._oci.limits import GroupLimits, for_gvisor, for_native
from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import InvalidArgument
from support.instance import Instance, until

MIB = 1 << 20
HOG = "python3 -c 'kept = []\nwhile True: kept.append(bytearray(b\"x\") * (4 << 20))'"
"""Takes memory until somebody ends it."""
FILLER = "import os; os.dup2(os.memfd_create('all'), 1); os.execv('/bin/cat', ['cat', '/dev/zero'])"


def made(client: Client, runtime: str, **spec: Any) -> Sandbox:
    return Sandbox.create(template="test", runtime=runtime, client=client, **({"memory": "256MiB"} | spec))


def group_of(instance: Instance, sandbox: Sandbox) -> Group:
    layout = detect(Path("/proc/self/mountinfo").read_text())
    groups = Groups(layout, f"sandkeep-{instance.name}/{sandbox.runtime}")
    (name,) = [one for one in groups.ids() if f"-{sandbox.id.partition('_')[2]}-" in one]
    return groups.machine(name)


def unsupported(instance: Instance, runtime: str) -> dict[str, str]:
    (found,) = [one for one in instance.json("runtimes") if one["name"] == runtime]
    return dict(found["unsupported"])


def kinds(sandbox: Sandbox) -> list[str]:
    return [event.kind for event in sandbox.events()]


def test_two_busy_loops_get_half_a_core(client: Client, runtime: str) -> None:
    sandbox = made(client, runtime, cpus=0.5)
    for _ in range(2):
        sandbox.start_process(["python3", "-c", "while True: pass"]).detach()
    until(lambda: len(sandbox.processes()) == 2)
    before, began = sandbox.stats().cpu_seconds, time.monotonic()
    until(lambda: time.monotonic() - began > 3, timeout=5)
    after, spent = sandbox.stats().cpu_seconds, time.monotonic() - began
    assert before is not None and after is not None
    assert 0.2 < (after - before) / spent <= 0.65


def test_a_hog_is_killed_and_the_sandbox_lives_on(client: Client, runtime: str) -> None:
    sandbox = made(client, runtime)
    bystander = sandbox.start_process(["sleep", "1000"])
    done = sandbox.exec(HOG, timeout=60)
    assert (done.exit_code, done.signal, done.out_of_memory) == (137, 9, True)
    event = until(lambda: next((e for e in sandbox.events() if e.kind == "sandbox.out_of_memory"), None))
    assert "python3" in event.reason
    assert sandbox.exec("echo alive").stdout == "alive\n"
    assert bystander.pid in {process.pid for process in sandbox.processes()}
    sandbox.refresh()
    assert sandbox.phase == "running"
    bystander.detach()


def test_a_hog_that_nobody_waits_for_is_reported_too(client: Client, runtime: str) -> None:
    sandbox = made(client, runtime)
    sandbox.exec(["bash", "-c", f"setsid {HOG} >/dev/null 2>&1 &"])
    event = until(lambda: next((e for e in sandbox.events() if e.kind == "sandbox.out_of_memory"), None), timeout=60)
    assert "python3" in event.reason
    assert kinds(sandbox).count("sandbox.out_of_memory") == 1
    assert sandbox.exec("true").exit_code == 0


def test_a_sandbox_whose_memory_no_kill_can_free_stops_and_keeps_its_disk(client: Client) -> None:
    """A file in memory belongs to no process, and whoever writes it is too small to be killed for it."""
    sandbox = made(client, "gvisor", memory="512MiB", on_failure="stop")
    sandbox.exec("echo kept > note; sync")
    sandbox.start_process(["python3", "-c", FILLER]).detach()
    sandbox.wait("stopped", timeout=90)
    conditions = {one.kind: one for one in sandbox.view.conditions}
    assert conditions["OutOfMemory"].value
    assert "memory" in sandbox.reason
    assert "sandbox.out_of_memory" in kinds(sandbox)
    sandbox.start()
    assert sandbox.exec("cat note").stdout == "kept\n"
    assert not {one.kind: one.value for one in sandbox.view.conditions}.get("OutOfMemory")


def test_a_fork_bomb_is_bounded_where_the_runtime_can(client: Client, instance: Instance) -> None:
    sandbox = made(client, "runc", pids=64)
    bomb = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(3); os._exit(0)
        made += 1
except BlockingIOError:
    print(made)
"""
    done = sandbox.exec(["python3", "-c", bomb], timeout=30)
    assert 30 < int(done.stdout) < 64
    assert (sandbox.stats().processes or 0) <= 64
    until(lambda: (sandbox.stats().processes or 99) < 20)
    assert sandbox.exec("echo alive").stdout == "alive\n"
    assert "pids" in unsupported(instance, "gvisor")
    assert "pids" not in unsupported(instance, "runc")


BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


def test_a_fork_bomb_harms_no_neighbour(client: Client, runtime: str, instance: Instance) -> None:
    """On gVisor the limit of the host's own processes ends the sandbox; its disk is kept, and it can be deleted."""
    bombed, neighbour = made(client, runtime, pids=128, cpus=1, on_failure="stop"), made(client, "runc")
    bombed.exec("echo kept > note; sync note")
    bombed.start_process(["python3", "-c", BOMB]).detach()
    until(lambda: (bombed.stats().processes or 0) > 60 or Sandbox.get(bombed.id, client=client).phase != "running", 30)
    for _ in range(5):
        assert neighbour.exec("echo well", timeout=10).stdout == "well\n"
    bound = (for_gvisor if runtime == "gvisor" else for_native)(Limits(pids=128)).pids
    assert (bombed.stats().processes or 0) <= bound + 64  # and what runc itself may have for its entrances
    bombed.stop()
    assert bombed.exec("cat note").stdout == "kept\n"
    bombed.delete()
    assert instance.fsck() == []


def test_a_guest_without_descriptors_can_still_be_used(client: Client, runtime: str) -> None:
    sandbox = made(client, runtime)
    greedy = """
import os
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    print(len(held), error.errno, flush=True)
input()
"""
    process = sandbox.start_process(["python3", "-c", greedy], stdin=True)
    first = next(iter(process))
    assert first.data.split()[1] == b"24", first  # type: ignore[union-attr]
    assert sandbox.exec("echo well").stdout == "well\n"
    assert sandbox.files.read("/etc/hostname")
    process.kill()
    process.detach()


def test_the_inside_tells_its_own_size_or_the_capabilities_say_not(
    client: Client, runtime: str, instance: Instance
) -> None:
    sandbox = made(client, runtime, memory="320MiB", disk="512MiB", cpus=1)
    lacks = unsupported(instance, runtime)
    free = int(sandbox.exec("awk '/^MemTotal/ {print $2}' /proc/meminfo").stdout) // 1024
    nproc = int(sandbox.exec("nproc").stdout)
    df = int(sandbox.exec("df -m --output=size / | tail -1").stdout)
    assert (free == 320) != ("own_memory" in lacks), free
    assert (nproc == 1) != ("own_cpus" in lacks), nproc
    assert (df == 512) != ("own_df" in lacks), df


def test_limits_change_on_the_running_machine(client: Client, runtime: str, instance: Instance) -> None:
    sandbox = made(client, runtime, memory="256MiB", disk="256MiB")
    group, wanted = group_of(instance, sandbox), for_gvisor if runtime == "gvisor" else for_native

    def limits(**values: Any) -> GroupLimits:
        return wanted(Limits(**({"cpus": 2.0, "memory": 256 * MIB, "pids": 4096} | values)))

    assert group.limits() == limits()
    sandbox.update(cpus=0.7, memory="384MiB", pids=99)
    assert group.limits() == limits(cpus=0.7, memory=384 * MIB, pids=99)
    shown = Sandbox.get(sandbox.id, client=client)
    assert (shown.view.cpus, shown.view.memory, shown.view.pids) == (0.7, 384 * MIB, 99)
    sandbox.update(memory="200MiB")
    assert group.limits() == limits(cpus=0.7, memory=200 * MIB, pids=99)
    assert sandbox.exec("head -c 300M /dev/zero > big").exit_code != 0
    sandbox.update(disk="768MiB")
    assert sandbox.exec("head -c 300M /dev/zero > big").exit_code == 0
    with pytest.raises(InvalidArgument, match="cannot shrink"):
        sandbox.update(disk="256MiB")
    sandbox.stop()
    sandbox.start()
    assert group_of(instance, sandbox).limits() == limits(cpus=0.7, memory=200 * MIB, pids=99)


def test_labels_and_lifetime_change(client: Client, instance: Instance) -> None:
    sandbox = made(client, "runc", labels={"a": "1"}, ttl="1h")
    instance.run("update", sandbox.id, "--label", "b=2", "--remove-label", "a", "--ttl", "2h")
    shown = instance.json("show", sandbox.id)
    assert (shown["labels"], shown["ttl"]) == ({"b": "2"}, 7200)
    assert [one.id for one in Sandbox.list(labels={"b": "2"}, client=client)] == [sandbox.id]
    instance.run("update", sandbox.id, "--ttl", "none")
    assert instance.json("show", sandbox.id)["expires_at"] is None
    sandbox.update(ttl=1)
    sandbox.wait("stopped", timeout=15)
    assert "sandbox.expired" in until(lambda: kinds(sandbox) if "sandbox.expired" in kinds(sandbox) else None)


def test_stats_tell_what_it_uses(client: Client, runtime: str, instance: Instance) -> None:
    sandbox = made(client, runtime)
    idle = sandbox.stats()
    assert (idle.memory_limit, idle.disk_limit) == (256 * MIB, 8 << 30)
    assert 0 < (idle.memory or 0) < 150 * MIB
    sandbox.exec("head -c 40M /dev/urandom > file; sync")
    holder = sandbox.start_process(
        ["python3", "-c", "held = b'x' * (64 << 20); print(1, flush=True); input()"], stdin=True
    )
    next(iter(holder))
    busy = sandbox.stats()
    assert (busy.memory or 0) - (idle.memory or 0) > 60 * MIB
    assert until(lambda: (sandbox.stats().disk or 0) - (idle.disk or 0) > 38 * MIB, timeout=40)
    assert (busy.processes or 0) >= (idle.processes or 0)
    assert instance.json("stats", sandbox.id)["memory_limit"] == 256 * MIB
    holder.kill()
    holder.detach()
    sandbox.stop()
    assert sandbox.stats().cpu_seconds is None
