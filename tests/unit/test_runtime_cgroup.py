"""Control groups on every layout, on folders that look like them; and version 2's freezer on the real one."""

import signal
from pathlib import Path

import pytest

from sandkeep.domain.errors import Conflict, Internal, Unsupported
from sandkeep.domain.quantities import MIB
from sandkeep.drivers.runtime._oci.cgroup import Group, Groups
from sandkeep.drivers.runtime._oci.layout import Hierarchy, Layout, detect
from sandkeep.drivers.runtime._oci.limits import GroupLimits
from sandkeep.drivers.runtime._oci.machines import ENTER
from sandkeep.lib import process

LIMITS = GroupLimits(quota=150_000, memory=256 * MIB, pids=100)


def line(path: Path, kind: str, options: str = "rw") -> str:
    return f"30 25 0:26 / {path} rw,relatime shared:4 - {kind} {kind} {options}\n"


def version_2(root: Path, controllers: str = "cpuset cpu io memory pids") -> str:
    root.mkdir(parents=True)
    (root / "cgroup.controllers").write_text(controllers + "\n")
    (root / "cgroup.subtree_control").write_text("")
    return line(root, "cgroup2", "rw,nsdelegate")


def version_1(root: Path, *mounted: str) -> str:
    text = ""
    for name in mounted:
        (root / name).mkdir(parents=True)
        text += line(root / name, "cgroup", f"rw,{name}")
    return text


def test_version_2_alone(tmp_path: Path) -> None:
    layout = detect("22 27 0:21 / /proc rw - proc proc rw\n" + version_2(tmp_path / "cg"))
    assert {hierarchy.version for hierarchy in layout.used} == {2}
    assert len(layout.used) == 1
    assert set(layout.chosen) == {"cpu", "memory", "pids", "freezer", "cpuacct"}


def test_version_1_with_joint_controllers(tmp_path: Path) -> None:
    text = version_1(tmp_path, "cpu,cpuacct", "memory", "pids", "freezer", "name=systemd")
    layout = detect(text)
    assert layout.chosen["cpu"] == layout.chosen["cpuacct"]
    assert layout.chosen["cpu"].path == tmp_path / "cpu,cpuacct"
    assert len(layout.used) == 4
    assert len(layout.all) == 5


def test_hybrid_prefers_where_the_controller_is(tmp_path: Path) -> None:
    text = version_1(tmp_path, "cpu", "cpuacct", "memory", "freezer") + version_2(tmp_path / "unified", "pids")
    layout = detect(text)
    assert layout.chosen["pids"].version == 2
    assert layout.chosen["freezer"].version == 1


def test_parents_that_were_cleared_away_are_made_again(tmp_path: Path) -> None:
    groups = Groups(detect(version_2(tmp_path / "cg")), "sandkeep-x/gvisor")
    groups.open()
    for folder in ("sandkeep-x/gvisor", "sandkeep-x"):
        for path in (tmp_path / "cg" / folder).glob("*"):
            path.unlink() if path.is_file() else path.rmdir()
        (tmp_path / "cg" / folder).rmdir()
    groups.machine("m1").create(LIMITS)
    assert (tmp_path / "cg/sandkeep-x/gvisor/cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (tmp_path / "cg/sandkeep-x/gvisor/m1/pids.max").read_text() == "100"


UNIT = "sandkeep.slice/sandkeep-x.slice/sandkeep-x-sandboxes.service"


def test_below_a_unit_machines_are_where_systemd_counts_them(tmp_path: Path) -> None:
    text = version_1(tmp_path, "cpu", "cpuacct", "memory", "pids", "freezer", "name=systemd", "devices")
    text += version_2(tmp_path / "unified", "")
    assert len(detect(text, "sandkeep-x").used) == 5
    layout = detect(text, UNIT)
    assert {h.path.name for h in set(layout.used) - set(layout.chosen.values())} == {"name=systemd", "unified"}
    groups = Groups(layout, f"{UNIT}/gvisor")
    groups.open()
    entrances = groups.machine("m1").entrances()
    assert f"{tmp_path}/name=systemd/{UNIT}/gvisor/m1/tasks" in entrances
    assert f"{tmp_path}/unified/{UNIT}/gvisor/m1/cgroup.procs" in entrances
    assert detect(version_2(tmp_path / "cg"), UNIT).used == detect(line(tmp_path / "cg", "cgroup2")).used


@pytest.mark.parametrize("controllers", ["cpu memory", "pids memory", ""])
def test_a_missing_controller_is_said(tmp_path: Path, controllers: str) -> None:
    with pytest.raises(Unsupported, match="controller"):
        detect(version_2(tmp_path / "cg", controllers))


def test_parents_of_version_2_hand_down_their_controllers(tmp_path: Path) -> None:
    groups = Groups(detect(version_2(tmp_path / "cg")), "sandkeep-x/gvisor")
    groups.open()
    groups.open()
    for folder in ("", "sandkeep-x", "sandkeep-x/gvisor"):
        assert (tmp_path / "cg" / folder / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def files(folder: Path, **values: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("__", ".")).write_text(value)
    return folder


def test_limits_and_usage_of_version_2(tmp_path: Path) -> None:
    group = Groups(detect(version_2(tmp_path / "cg")), "p").machine("m1")
    folder = files(tmp_path / "cg/p/m1", memory__swap__max="max", memory__current="0")
    group.create(LIMITS)
    assert (folder / "cpu.max").read_text() == "150000 100000"
    assert (folder / "memory.swap.max").read_text() == "0"
    files(
        folder,
        cpu__stat="usage_usec 2500000\nuser_usec 1\n",
        memory__current=str(9 * MIB),
        memory__stat=f"anon 1\ninactive_file {2 * MIB}\n",
        memory__events="low 0\noom 3\noom_kill 2\n",
        pids__current="7",
        cgroup__procs="11\n12\n",
    )
    usage = group.usage()
    assert usage
    assert (usage.cpu_seconds, usage.memory, usage.processes, usage.oom_kills) == (2.5, 7 * MIB, 7, 2)
    assert group.pids() == [11, 12]
    assert group.entrances() == [str(folder / "cgroup.procs")]
    with pytest.raises(Conflict, match="9 MiB"):
        group.apply(GroupLimits(150_000, 4 * MIB, 100))


def test_limits_and_usage_of_version_1(tmp_path: Path) -> None:
    layout = detect(version_1(tmp_path, "cpu", "cpuacct", "memory", "pids", "freezer"))
    group = Groups(layout, "p").machine("m1")
    files(tmp_path / "memory/p/m1", memory__limit_in_bytes="99", memory__memsw__limit_in_bytes="99")
    for name in ("cpu", "cpuacct", "pids", "freezer"):
        (tmp_path / name / "p").mkdir()
    group.create(LIMITS)
    assert group.limits() == LIMITS
    assert (tmp_path / "memory/p/m1/memory.memsw.limit_in_bytes").read_text() == str(256 * MIB)
    files(
        tmp_path / "memory/p/m1",
        memory__usage_in_bytes=str(9 * MIB),
        memory__stat=f"inactive_file 5\ntotal_inactive_file {MIB}\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
    )
    files(tmp_path / "cpuacct/p/m1", cpuacct__usage="1500000000")
    files(tmp_path / "pids/p/m1", pids__current="3", cgroup__procs="5\n")
    usage = group.usage()
    assert usage
    assert (usage.cpu_seconds, usage.memory, usage.processes, usage.oom_kills) == (1.5, 8 * MIB, 3, 4)
    assert len(group.entrances()) == 5
    assert all(entrance.endswith("/m1/tasks") for entrance in group.entrances())


def test_a_kernel_that_takes_another_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Groups(detect(version_2(tmp_path / "cg")), "p").machine("m1")
    (tmp_path / "cg/p").mkdir()
    monkeypatch.setattr(Group, "limits", lambda self: GroupLimits(1, 2, 3))
    with pytest.raises(Internal, match="instead of"):
        group.create(LIMITS)


def test_machines_are_found_in_any_hierarchy(tmp_path: Path) -> None:
    layout = detect(version_1(tmp_path, "cpu", "cpuacct", "memory", "pids", "freezer", "devices"))
    groups = Groups(layout, "p")
    assert groups.ids() == set()
    (tmp_path / "devices/p/left").mkdir(parents=True)
    (tmp_path / "cpu/p/m1").mkdir(parents=True)
    assert groups.ids() == {"left", "m1"}
    groups.machine("left").remove()
    assert groups.ids() == {"m1"}
    assert groups.machine("left").usage() is None
    groups.machine("m1").remove()
    groups.close()
    assert not (tmp_path / "cpu/p").exists()


@pytest.fixture
def unified() -> Hierarchy:
    for hierarchy in detect(Path("/proc/self/mountinfo").read_text()).all:
        if hierarchy.version == 2:
            return hierarchy
    pytest.skip("this host has no version 2 hierarchy")


@pytest.mark.anyio
@pytest.mark.requires("root")
async def test_the_real_version_2_freezes_and_kills(unified: Hierarchy) -> None:
    groups = Groups(Layout((unified,), dict.fromkeys(("freezer", "pids"), unified)), "sandkeep-test-freeze")
    groups.open()
    group = groups.machine("m1")
    (unified.path / group.path).mkdir()
    try:
        child = process.spawn(["/bin/sh", "-c", ENTER, "sh", *group.entrances(), "--", "sleep", "1000"])
        while child.pid not in group.members():
            assert child.code is None
        assert not group.frozen
        group.freeze()
        group.freeze()
        assert group.frozen
        group.thaw()
        assert not group.frozen
        group.freeze()
        assert group.signal_all() == [child.pid]
        assert await child.wait() == -signal.SIGKILL
    finally:
        group.remove()
        groups.close()
    assert not (unified.path / "sandkeep-test-freeze").exists()


@pytest.mark.anyio
@pytest.mark.requires("root")
async def test_a_group_that_is_held_for_us_is_vacated(unified: Hierarchy) -> None:
    """As systemd delegates one: a process of the unit is in it, and the kernel refuses to hand down controllers then."""
    if not unified.controllers:
        pytest.skip("no controller of this host is on version 2")
    name = sorted(unified.controllers)[0]
    unit = unified.path / "sandkeep-test-unit"
    groups = Groups(Layout((unified,), {name: unified}), f"{unit.name}/gvisor")
    unit.mkdir()
    holder = process.spawn(["/bin/sh", "-c", ENTER, "sh", str(unit / "cgroup.procs"), "--", "sleep", "1000"])
    try:
        while str(holder.pid) not in (unit / "cgroup.procs").read_text().split():
            assert holder.code is None
        groups.open()
        groups.open()
        assert name in (unit / "gvisor/cgroup.controllers").read_text().split()
        assert (unit / "holder/cgroup.procs").read_text().split() == [str(holder.pid)]
        groups.close()
        assert unit.is_dir(), "a group with a process in it is not ours to remove"
    finally:
        await process.kill([holder.pid])
        for folder in (unit / "gvisor", unit / "holder", unit):
            if folder.exists():
                folder.rmdir()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
