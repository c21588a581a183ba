"""What contracts.runtime promises, kept by runc, gVisor and the fake."""

import os
import pickle
import signal
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import anyio
import pytest
from tests.support.machines import (
    control_groups,
    counter,
    counts_on,
    drop_namespace,
    make_agent,
    make_namespace,
    make_plan,
    make_root,
    program,
    stands_still,
    syscall_prober,
    until,
)

from sandkeep.contracts.runtime import MachinePlan, MachineState, MachineUsage, Runtime
from sandkeep.domain.errors import Conflict, Internal, InvalidArgument, NotFound, PauseFailed, Unsupported
from sandkeep.domain.quantities import MIB
from sandkeep.domain.sandbox import Hold, Limits
from sandkeep.drivers.fake.runtimes import FakeKernel, FakeRuntime
from sandkeep.drivers.runtime._oci.cgroup import Group, Groups
from sandkeep.drivers.runtime._oci.layout import detect
from sandkeep.drivers.runtime.runc import RuncRuntime
from sandkeep.drivers.runtime.runsc import GvisorRuntime, control, state
from sandkeep.lib import process

pytestmark = pytest.mark.anyio

RUNC = pytest.param("runc", marks=pytest.mark.requires("root", "runc"))
GVISOR = pytest.param("gvisor", marks=pytest.mark.requires("root", "gvisor"))
REAL = [RUNC, GVISOR]
EVERY = [*REAL, "fake"]

_serial = count()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Bench:
    """One runtime and what a test needs to make machines with it."""

    kind: str
    folder: Path
    open: Callable[[], Runtime]
    runtime: Runtime
    parent: str
    namespaces: list[Path] = field(default_factory=list)
    serial: Iterator[int] = field(default_factory=count)

    def plan(self, *, start: str = "", agent: str | bytes | None = None, **limits: float) -> MachinePlan:
        """A machine with a fresh root. start: shell script that the agent runs first."""
        name = f"m{next(self.serial):04d}"
        root = make_root(self.folder / name / "root")
        if start:
            (root / "start").write_text(f"#!/bin/sh\n{start}\n")
            (root / "start").chmod(0o755)
        folder = self.folder / name / "agent"
        make_agent(folder) if agent is None else make_agent(folder, agent)
        if self.kind == "fake":
            namespace = self.folder / name / "network"
        else:
            namespace = make_namespace(self.folder / name / "network")
            self.namespaces.append(namespace)
        return make_plan(f"tst-{name}", root, folder, namespace, **limits)

    async def boot(self, *, start: str = "", **limits: float) -> MachinePlan:
        plan = self.plan(start=start, **limits)
        await self.runtime.boot(plan)
        if self.kind != "fake":
            await until(lambda: counter(plan.root) > 0)
        return plan

    def group(self, machine_id: str) -> Group:
        groups = Groups(detect(Path("/proc/self/mountinfo").read_text()), f"{self.parent}/{self.kind}")
        return groups.machine(machine_id)

    def usage(self, machine_id: str) -> MachineUsage:
        found = self.group(machine_id).usage()
        assert found
        return found

    async def state(self, machine_id: str) -> MachineState:
        return next(state for state in await self.runtime.machines() if state.id == machine_id)

    def left(self, machine_id: str) -> list[str]:
        """Whatever on the host still knows the machine."""
        if self.kind == "fake":
            return []
        found = [str(group) for group in control_groups(f"{machine_id}*")]
        found += [str(path) for path in (self.folder / "run").rglob(f"*{machine_id}*")]
        found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if machine_id in line]
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = entry.read_bytes()
            except OSError:
                continue
            if machine_id.encode() in text:
                found.append(f"process {entry.parent.name}: {text[:200]!r}")
        return found


@pytest.fixture
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    kind, run = request.param, tmp_path / "run"
    parent = f"sandkeep-test-{os.getpid()}-{next(_serial)}"
    kernel = FakeKernel()
    makers: dict[str, Callable[[], Runtime]] = {
        "runc": lambda: RuncRuntime(run, program("runc"), parent),
        "gvisor": lambda: GvisorRuntime(run, program("runsc"), parent),
        "fake": lambda: FakeRuntime(kernel=kernel),
    }
    process.adopt_orphans()
    made = Bench(kind, tmp_path, makers[kind], makers[kind](), parent)
    await made.runtime.open()
    assert made.runtime.capabilities.available, made.runtime.capabilities.reason
    try:
        yield made
    finally:
        for found in await made.runtime.machines():
            await made.runtime.kill(found.id)
            assert made.left(found.id) == []
        await made.runtime.close()
        for namespace in made.namespaces:
            drop_namespace(namespace)
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


every = pytest.mark.parametrize("bench", EVERY, indirect=True)
real = pytest.mark.parametrize("bench", REAL, indirect=True)
gvisor = pytest.mark.parametrize("bench", [GVISOR], indirect=True)
native = pytest.mark.parametrize("bench", [RUNC], indirect=True)
saving = pytest.mark.parametrize("bench", [GVISOR, "fake"], indirect=True)


@every
async def test_boot_and_kill_leave_nothing(bench: Bench) -> None:
    plan = await bench.boot()
    assert (await bench.state(plan.id)).pids
    await bench.runtime.kill(plan.id)
    assert await bench.runtime.machines() == []
    assert bench.left(plan.id) == []
    assert await bench.runtime.usage(plan.id) is None


@every
async def test_a_failed_boot_leaves_nothing(bench: Bench) -> None:
    plan = bench.plan()
    (plan.agent / "agent").unlink()
    with pytest.raises(Internal, match=r"did not start|ended at once"):
        await bench.runtime.boot(plan)
    assert await bench.runtime.machines() == []
    assert bench.left(plan.id) == []


@real
async def test_a_cancelled_boot_leaves_nothing(bench: Bench) -> None:
    for seconds in (0.005, 0.02, 0.06):
        plan = bench.plan()
        with anyio.move_on_after(seconds) as scope:
            await bench.runtime.boot(plan)
        if not scope.cancelled_caught:  # it boots faster than that
            await bench.runtime.kill(plan.id)
        assert await bench.runtime.machines() == []
        assert bench.left(plan.id) == []


BOOT = """
import asyncio, pickle, sys
plan, maker, arguments = pickle.load(sys.stdin.buffer)
async def main():
    runtime = maker(*arguments)
    await runtime.open()
    print("begun", flush=True)
    await runtime.boot(plan)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@real
@pytest.mark.parametrize("seconds", [0.002, 0.02, 0.07])
async def test_a_boot_that_the_runner_did_not_survive(bench: Bench, seconds: float) -> None:
    plan = bench.plan()
    recipe = bench.folder / "recipe"
    runtime = bench.runtime
    assert isinstance(runtime, RuncRuntime | GvisorRuntime)
    recipe.write_bytes(pickle.dumps((plan, type(runtime), (bench.folder / "run", runtime._binary, bench.parent))))
    output = bench.folder / "output"
    with recipe.open("rb") as stdin, output.open("wb") as stdout:
        runner = process.spawn([sys.executable, "-c", BOOT], stdin=stdin, stdout=stdout)
    await until(lambda: b"begun" in output.read_bytes())
    await anyio.sleep(seconds)
    runner.send_signal(signal.SIGKILL)
    await runner.wait()
    for found in await bench.runtime.machines():
        await bench.runtime.kill(found.id)
    assert await bench.runtime.machines() == []
    assert bench.left(plan.id) == []


@real
async def test_many_at_once(bench: Bench) -> None:
    plans = [bench.plan() for _ in range(6)]
    async with anyio.create_task_group() as group:
        for plan in plans:
            group.start_soon(bench.runtime.boot, plan)
    assert [len(state.pids) > 0 for state in await bench.runtime.machines()] == [True] * 6
    for plan in plans:
        await until(lambda root=plan.root: counter(root) > 0)
    for change in (bench.runtime.freeze, bench.runtime.thaw, bench.runtime.kill):
        async with anyio.create_task_group() as group:
            for plan in plans:
                group.start_soon(change, plan.id)
    assert [bench.left(plan.id) for plan in plans] == [[]] * 6


@real
async def test_an_unsafe_root_is_refused(bench: Bench) -> None:
    plan = bench.plan()
    (plan.root / "dev").rmdir()
    (plan.root / "dev").symlink_to("/")
    with pytest.raises(InvalidArgument, match="/dev"):
        await bench.runtime.boot(plan)
    assert bench.left(plan.id) == []


@real
async def test_the_agents_folder_cannot_be_written(bench: Bench) -> None:
    """All sandboxes of a host share it. Emptying a file is not the same as writing: gVisor's refusal came too late."""
    plan = bench.plan(start="for f in agent new; do (: > /.sandkeep/$f); (echo x >> /.sandkeep/$f); done; true")
    before = {path.name: path.read_bytes() for path in plan.agent.iterdir()}
    await bench.runtime.boot(plan)
    await until(lambda: counter(plan.root) > 0)
    assert {path.name: path.read_bytes() for path in plan.agent.iterdir()} == before


@every
async def test_an_id_is_not_used_twice(bench: Bench) -> None:
    plan = await bench.boot()
    with pytest.raises(Conflict):
        await bench.runtime.boot(plan)
    assert (await bench.state(plan.id)).pids


@every
async def test_killing_what_does_not_exist_is_no_error(bench: Bench) -> None:
    await bench.runtime.kill("tst-nothing")
    plan = await bench.boot()
    await bench.runtime.kill(plan.id)
    await bench.runtime.kill(plan.id)


@every
async def test_unknown_machines(bench: Bench) -> None:
    with pytest.raises(NotFound):
        await bench.runtime.freeze("tst-nothing")
    with pytest.raises(NotFound):
        await bench.runtime.thaw("tst-nothing")
    assert await bench.runtime.usage("tst-nothing") is None
    assert await bench.runtime.wait_exit("tst-nothing") == "there is no such machine"


@every
async def test_freeze_and_thaw_are_idempotent(bench: Bench) -> None:
    plan = await bench.boot()
    for frozen, change in ((True, bench.runtime.freeze), (False, bench.runtime.thaw)):
        await change(plan.id)
        await change(plan.id)
        assert (await bench.state(plan.id)).frozen is frozen


@real
async def test_a_frozen_machine_runs_nothing(bench: Bench) -> None:
    plan = await bench.boot(start="while :; do :; done")
    await bench.runtime.freeze(plan.id)
    assert await stands_still(plan.root)
    before = await bench.runtime.usage(plan.id)
    assert await stands_still(plan.root)
    assert before
    after = await bench.runtime.usage(plan.id)
    assert after
    assert after.cpu_seconds - before.cpu_seconds < 0.01
    await bench.runtime.thaw(plan.id)
    await counts_on(plan.root)


@every
async def test_a_frozen_machine_is_killed(bench: Bench) -> None:
    plan = await bench.boot()
    await bench.runtime.freeze(plan.id)
    with anyio.fail_after(5):
        await bench.runtime.kill(plan.id)
    assert await bench.runtime.machines() == []
    assert bench.left(plan.id) == []


@real
async def test_every_process_is_in_the_group_with_its_limits(bench: Bench) -> None:
    plan = await bench.boot(start="sleep 1000 & sleep 1000", cpus=0.5, memory=128 * MIB, pids=300)
    group, pids = bench.group(plan.id), set((await bench.state(plan.id)).pids)
    members = set(group.pids())
    assert pids <= members
    for pid in members:
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            assert pid not in pids  # one of a moment
            continue
        for line in lines:
            controllers = set(line.split(":")[1].split(","))
            if controllers & {"cpu", "memory", "pids", "freezer"}:
                assert line.endswith(plan.id), line
    limits = group.limits()
    assert limits.quota == 50_000
    assert limits.memory == (128 + (256 if bench.kind == "gvisor" else 0)) * MIB
    assert limits.pids >= 300
    usage = await bench.runtime.usage(plan.id)
    assert usage
    assert usage.cpu_seconds > 0
    assert usage.memory > 0
    assert usage.processes >= 3


@real
async def test_limits_change_while_it_runs(bench: Bench) -> None:
    plan = await bench.boot()
    for cpus, memory in ((1.5, 512 * MIB), (0.7, 192 * MIB)):
        await bench.runtime.set_limits(plan.id, Limits(cpus=cpus, memory=memory, pids=1000))
        found = bench.group(plan.id).limits()
        assert found.quota == round(cpus * 100_000)
        assert found.memory == memory + (256 * MIB if bench.kind == "gvisor" else 0)
    await counts_on(plan.root)


@native
async def test_memory_that_is_in_use_is_not_taken_away(bench: Bench) -> None:
    plan = await bench.boot(start="dd if=/dev/zero of=/tmp/hog bs=1M count=60; sleep 1000", memory=400 * MIB)
    await until(lambda: bench.usage(plan.id).memory > 60 * MIB)
    with pytest.raises(Conflict):
        await bench.runtime.set_limits(plan.id, Limits(memory=MIB, pids=1000))
    await counts_on(plan.root)


@real
async def test_out_of_memory_is_reported(bench: Bench) -> None:
    # the shell's variable doubles until the limit, above which process 1 itself is killed
    agent = "#!/bin/busybox sh\necho 1 1 > /counter\nx=0123456789abcdef\nwhile :; do x=$x$x; done\n"
    plan = bench.plan(agent=agent, memory=64 * MIB)
    await bench.runtime.boot(plan)
    with anyio.fail_after(60):
        how = await bench.runtime.wait_exit(plan.id)
    assert "out of memory" in how
    assert (await bench.state(plan.id)).pids == ()


@real
async def test_the_smallest_machine(bench: Bench) -> None:
    plan = await bench.boot(cpus=0.1, memory=64 * MIB, pids=16)
    await counts_on(plan.root)
    limits = bench.group(plan.id).limits()
    assert limits.quota == 10_000
    assert limits.pids == (16 if bench.kind == "runc" else 4096)


@native
async def test_a_fork_bomb_stays_inside(bench: Bench) -> None:
    # a shell that cannot fork ends: the bomb is a child, and process 1 needs no other process afterwards
    agent = "#!/bin/busybox sh\nsleep 0.5\n(while :; do sleep 100 & done)\nexec sleep 1000\n"
    plan = bench.plan(agent=agent, pids=40)
    await bench.runtime.boot(plan)
    await until(lambda: bench.usage(plan.id).processes >= 39)
    assert len(bench.group(plan.id).pids()) <= 40


@gvisor
async def test_the_guest_sees_its_own_size(bench: Bench) -> None:
    plan = await bench.boot(start="cat /proc/meminfo > /seen", memory=192 * MIB)
    await until(lambda: (plan.root / "seen").exists() and "MemFree" in (plan.root / "seen").read_text())
    assert f"MemTotal:         {192 * 1024} kB" in (plan.root / "seen").read_text()


@every
async def test_a_restarted_runner_adopts(bench: Bench) -> None:
    plan = await bench.boot()
    before = await bench.state(plan.id)
    await bench.runtime.freeze(plan.id)
    bench.runtime = bench.open()
    await bench.runtime.open()
    assert await bench.runtime.machines() == [replace(before, frozen=True)]
    await bench.runtime.thaw(plan.id)
    assert await bench.runtime.usage(plan.id)
    ends: list[str] = []

    async def watch() -> None:
        ends.append(await bench.runtime.wait_exit(plan.id))

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await anyio.wait_all_tasks_blocked()
        if bench.kind != "fake":
            await counts_on(plan.root)
        await bench.runtime.kill(plan.id)
    assert ends[0].startswith("ended")
    assert bench.left(plan.id) == []


@real
async def test_the_end_by_itself(bench: Bench) -> None:
    agent = "#!/bin/busybox sh\necho good-bye\nsleep 0.3\nexit 7\n"
    plan = bench.plan(agent=agent)
    await bench.runtime.boot(plan)
    with anyio.fail_after(20):
        assert await bench.runtime.wait_exit(plan.id) == "ended with exit code 7"
    assert "good-bye" in await bench.runtime.log(plan.id, 1000)
    assert (await bench.state(plan.id)).pids == ()
    await bench.runtime.kill(plan.id)
    assert bench.left(plan.id) == []


@real
async def test_the_end_of_a_part_is_the_end(bench: Bench) -> None:
    """gVisor's kernel ends when its gofer has; while it is frozen it cannot."""
    plan = await bench.boot()
    leader, *others = (await bench.state(plan.id)).pids
    if not others:
        pytest.skip("a machine of this runtime has one leader")
    os.kill(leader, signal.SIGSTOP)
    os.kill(others[0], signal.SIGKILL)
    with anyio.fail_after(20):
        assert (await bench.runtime.wait_exit(plan.id)).startswith("ended")
    bench.group(plan.id).freeze()
    os.kill(leader, signal.SIGCONT)
    with pytest.raises(NotFound):
        await bench.runtime.thaw(plan.id)
    await until(lambda: not Path(f"/proc/{leader}/exe").exists())
    await bench.runtime.kill(plan.id)
    assert bench.left(plan.id) == []


@real
async def test_the_end_by_force(bench: Bench) -> None:
    plan = await bench.boot()
    pid = (await bench.state(plan.id)).pids[0]
    os.kill(pid, 9)
    assert await bench.runtime.wait_exit(plan.id) in {"ended by SIGKILL", "ended", "there is no such machine"}
    await until(lambda: not Path(f"/proc/{pid}/exe").exists())
    assert (await bench.state(plan.id)).pids == ()


@real
async def test_a_flood_of_output_is_bounded(bench: Bench) -> None:
    plan = await bench.boot(start="yes 0123456789abcdef | head -c 60000000")
    logs = next((bench.folder / "run").glob("*/logs"))
    await until(lambda: (logs / plan.id).stat().st_size > 20 * MIB)
    await bench.runtime.usage(plan.id)
    assert (logs / plan.id).stat().st_size <= 33 * MIB
    assert len(await bench.runtime.log(plan.id, 1000)) <= 1000
    await counts_on(plan.root)


@saving
async def test_memory_survives_save_kill_and_restore(bench: Bench) -> None:
    plan = await bench.boot(start="sleep 1000")
    runtime, folder = bench.runtime, bench.folder / "image"
    folder.mkdir()
    await runtime.prepare_save(plan.id)
    image = await runtime.save(plan.id, folder)
    assert (await bench.state(plan.id)).frozen
    assert {path.name for path in folder.iterdir()} == set(image.files)
    before = counter(plan.root)
    await runtime.kill(plan.id)
    runtime.check_image(image)
    again = replace(plan, id="tst-again")
    await runtime.restore(again, folder, image)
    assert not (await bench.state(again.id)).frozen
    if bench.kind != "fake":
        await until(lambda: counter(plan.root) > before)
        assert before <= counter(plan.root) < before + 500
        await counts_on(plan.root)
    await runtime.kill(again.id)
    assert bench.left(again.id) == []


@saving
async def test_a_saved_machine_goes_on(bench: Bench) -> None:
    plan = await bench.boot()
    for number in range(2):
        folder = bench.folder / f"image{number}"
        folder.mkdir()
        await bench.runtime.freeze(plan.id)  # a save of a frozen machine is a save, too
        await bench.runtime.save(plan.id, folder)
        if bench.kind != "fake":
            assert await stands_still(plan.root)
        bench.runtime = bench.open()  # also by a restarted runner
        await bench.runtime.open()
        await bench.runtime.thaw(plan.id)
        await bench.runtime.thaw(plan.id)
        assert not (await bench.state(plan.id)).frozen
        if bench.kind != "fake":
            await counts_on(plan.root)


@gvisor
async def test_a_save_that_was_cut_short_is_undone(bench: Bench) -> None:
    """The runner is killed between gVisor's pause and its own freeze."""
    plan = await bench.boot()
    container = state.load(bench.folder / "run/runsc/state", plan.id)
    assert container
    (bench.folder / "run/runsc/machines" / plan.id / "paused").touch()
    await control.pause(container.socket)
    bench.runtime = bench.open()
    await bench.runtime.open()
    assert (await bench.state(plan.id)).frozen
    await bench.runtime.thaw(plan.id)
    assert not (await bench.state(plan.id)).frozen
    await counts_on(plan.root)


@gvisor
async def test_a_cancelled_save_is_undone(bench: Bench) -> None:
    plan = await bench.boot()
    for number, seconds in enumerate((0.0005, 0.002, 0.01)):
        folder = bench.folder / f"image{number}"
        folder.mkdir()
        with anyio.move_on_after(seconds):
            await bench.runtime.save(plan.id, folder)
        await bench.runtime.thaw(plan.id)
        assert not (await bench.state(plan.id)).frozen
        await counts_on(plan.root)


@gvisor
async def test_a_deleted_open_file_refuses_the_save(bench: Bench) -> None:
    plan = await bench.boot(start="exec 5>/held-open; echo x >&5; rm /held-open; echo > /ready; sleep 1000")
    await until((plan.root / "ready").exists)
    with pytest.raises(PauseFailed, match="deleted"):
        await bench.runtime.prepare_save(plan.id)
    await counts_on(plan.root)
    folder = bench.folder / "image"
    folder.mkdir()
    with pytest.raises(PauseFailed, match="deleted"):
        await bench.runtime.save(plan.id, folder)
    assert await stands_still(plan.root)
    assert (await bench.state(plan.id)).frozen
    await bench.runtime.thaw(plan.id)
    await counts_on(plan.root)


@saving
async def test_an_image_that_does_not_fit(bench: Bench) -> None:
    plan = await bench.boot()
    folder = bench.folder / "image"
    folder.mkdir()
    image = await bench.runtime.save(plan.id, folder)
    with pytest.raises(Unsupported):
        bench.runtime.check_image(replace(image, requires=image.requires | {"version": "other"}))
    for name in image.files:
        (folder / name).write_bytes(b"")
    again = replace(plan, id="tst-again")
    with pytest.raises(Internal):
        await bench.runtime.restore(again, folder, image)
    assert [state.id for state in await bench.runtime.machines()] == [plan.id]
    assert bench.left(again.id) == []


@native
async def test_what_cannot_save_says_so(bench: Bench) -> None:
    assert Hold.DISK not in bench.runtime.capabilities.holds
    plan = await bench.boot()
    with pytest.raises(Unsupported, match="gvisor"):
        await bench.runtime.prepare_save(plan.id)
    with pytest.raises(Unsupported):
        await bench.runtime.save(plan.id, bench.folder)


async def _probed(bench: Bench, calls: list[tuple[int, ...]]) -> tuple[int, ...]:
    """What each call answered inside. The program itself is a file of the host that all machines share: its pages, as
    everybody here reads them, are the same afterwards, whatever was tried."""
    program_text = syscall_prober(calls)
    plan = bench.plan(agent=program_text)
    await bench.runtime.boot(plan)
    results = plan.root / "results"
    await until(lambda: results.exists() and results.stat().st_size == 8 * len(calls))
    assert (plan.agent / "agent").read_bytes() == program_text
    return struct.unpack(f"<{len(calls)}q", results.read_bytes())


@gvisor
@pytest.mark.requires("x86_64")
async def test_what_was_a_way_into_kernels_is_not_in_gvisors(bench: Bench) -> None:
    """Its own kernel answers, so what it refuses is not about the host; that none of these is there is."""
    calls: dict[str, tuple[int, ...]] = {
        "socket(AF_ALG)": (41, 38, 5, 0),
        "socket(AF_VSOCK)": (41, 40, 1, 0),
        "socket(AF_PACKET)": (41, 17, 3, 0),
        "socket(AF_KEY)": (41, 15, 3, 2),
        "socket(AF_RXRPC)": (41, 33, 2, 2),
        "socket(NETLINK_XFRM)": (41, 16, 3, 6),
        "socket(AF_XDP)": (41, 44, 3, 0),
        "bpf": (321, 0),
        "perf_event_open": (298,),
        "io_uring_setup": (425, 8, 0),
        "userfaultfd": (323, 0),
        "open_by_handle_at": (304,),
        "fsopen": (430,),
        "kexec_load": (246,),
        "init_module": (175,),
        "iopl": (172, 3),
        "ioctl(BTRFS_IOC_SUBVOL_CREATE)": (16, 0, 0x5000940E),
    }
    found = await _probed(bench, list(calls.values()))
    assert {name: got for name, got in zip(calls, found, strict=True) if got >= 0} == {}


@native
@pytest.mark.requires("x86_64")
async def test_the_filter_of_system_calls(bench: Bench) -> None:
    eperm, enosys = -1, -38
    calls: dict[str, tuple[tuple[int, ...], int | None]] = {
        "unshare(CLONE_NEWUSER)": ((272, 0x10000000), eperm),
        "clone(CLONE_NEWUSER)": ((56, 0x10000011), eperm),
        "clone3": ((435, 0, 0), enosys),
        "socket(AF_ALG)": ((41, 38, 5, 0), eperm),
        "socket(AF_VSOCK)": ((41, 40, 1, 0), eperm),
        "socket(AF_PACKET)": ((41, 17, 3, 0), eperm),
        "socket(AF_KEY)": ((41, 15, 3, 2), eperm),
        "socket(AF_RXRPC)": ((41, 33, 2, 2), eperm),
        "socket(AF_ALG), upper bits": ((41, 38 | 1 << 32, 5, 0), eperm),
        "socket(NETLINK_XFRM)": ((41, 16, 3, 6), eperm),
        "socket(NETLINK_NETFILTER)": ((41, 16, 3, 12), eperm),
        "socket(NETLINK_CRYPTO)": ((41, 16, 3, 21), eperm),
        "socket(AF_TIPC)": ((41, 30, 2, 0), eperm),
        "socket(AF_XDP)": ((41, 44, 3, 0), eperm),
        "socket(AF_SMC)": ((41, 43, 1, 0), eperm),
        "socket(NETLINK_ROUTE)": ((41, 16, 3, 0), None),
        "socket(AF_INET)": ((41, 2, 1, 0), None),
        "keyctl": ((250, 0, 0), eperm),
        "add_key": ((248,), eperm),
        "request_key": ((249,), eperm),
        "bpf": ((321, 0), eperm),
        "perf_event_open": ((298,), eperm),
        "io_uring_setup": ((425, 8, 0), eperm),
        "io_uring_enter": ((426, 0), eperm),
        "io_uring_register": ((427, 0), eperm),
        "userfaultfd": ((323, 0), eperm),
        "open_by_handle_at": ((304,), eperm),
        "mount": ((165,), eperm),
        "fsopen": ((430,), eperm),
        "fsmount": ((432,), eperm),
        "move_mount": ((429,), eperm),
        "open_tree": ((428,), eperm),
        "mount_setattr": ((442,), eperm),
        "umount2": ((166,), eperm),
        "pivot_root": ((155,), eperm),
        "setns": ((308,), eperm),
        "kexec_load": ((246,), eperm),
        "init_module": ((175,), eperm),
        "finit_module": ((313,), eperm),
        "delete_module": ((176,), eperm),
        "kexec_file_load": ((320,), eperm),
        "reboot": ((169,), eperm),
        "swapon": ((167,), eperm),
        "syslog": ((103, 3, 0, 0), eperm),
        "acct": ((163,), eperm),
        "quotactl": ((179,), eperm),
        "fanotify_init": ((300,), eperm),
        "lookup_dcookie": ((212,), eperm),
        "iopl": ((172, 3), eperm),
        "ioperm": ((173,), eperm),
        "kcmp": ((312,), eperm),
        "memfd_secret": ((447,), eperm),
        "settimeofday": ((164,), eperm),
        "clock_settime": ((227,), eperm),
        "sethostname": ((170,), eperm),
        "a call that runc does not know": ((600,), enosys),
        "ioctl(BTRFS_IOC_SUBVOL_CREATE)": ((16, 0, 0x5000940E), eperm),
        "ioctl(BTRFS_IOC_SNAP_CREATE_V2)": ((16, 0, 0x50009417), eperm),
        "ioctl(BTRFS_IOC_SUBVOL_CREATE), upper bits": ((16, 0, 0x5000940E | 1 << 32), eperm),
        "ioctl(TIOCSTI)": ((16, 0, 0x5412), eperm),
        "ioctl(FICLONE) of nothing": ((16, 99, 0x40049409), -9),
        "ioctl(TCGETS) of nothing": ((16, 99, 0x5401), -9),
        "ptrace(PTRACE_TRACEME)": ((101, 0), 0),
        "getpid": ((39,), 1),
    }
    found = await _probed(bench, [call for call, _ in calls.values()])
    wrong = {
        name: got
        for (name, (_, wanted)), got in zip(calls.items(), found, strict=True)
        if (got < 0 if wanted is None else got != wanted)
    }
    assert wrong == {}
