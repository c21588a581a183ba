"""The control groups of this instance's machines: `<parent>/<machine id>` in every hierarchy that holds a controller
which we need. All calls block (microseconds, a freeze up to its deadline) and are made from threads.
"""

import contextlib
import errno
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from sandkeep.contracts.runtime import MachineUsage
from sandkeep.domain.errors import Conflict, DeadlineExceeded, Internal
from sandkeep.domain.quantities import format_size
from sandkeep.drivers.runtime._oci.files import number, read, write
from sandkeep.drivers.runtime._oci.layout import Hierarchy, Layout
from sandkeep.drivers.runtime._oci.limits import CPU_PERIOD, GroupLimits

_STEP = 0.0005
"""Seconds between two looks at something of which the kernel sends no notice."""


@dataclass(frozen=True)
class Groups:
    """parent: path below each hierarchy's root, such as `sandkeep-main/gvisor`. A group on the way that another program
    made for us may hold a process."""

    layout: Layout
    parent: str

    def open(self) -> None:
        """Make the parents, with the controllers switched on (version 2). Raises OSError where that is forbidden."""
        for hierarchy in self.layout.used:
            wanted = {
                name for name, chosen in self.layout.chosen.items() if chosen is hierarchy
            } & hierarchy.controllers
            folder = hierarchy.path
            for part in Path(self.parent).parts:
                if hierarchy.version == 2:
                    _hand_down(folder, wanted)
                folder /= part
                folder.mkdir(exist_ok=True)
            if hierarchy.version == 2:
                _hand_down(folder, wanted)

    def close(self) -> None:
        """Remove the parents that are empty now."""
        for hierarchy in self.layout.all:
            folder = hierarchy.path / self.parent
            while folder != hierarchy.path:
                with contextlib.suppress(OSError):
                    folder.rmdir()
                folder = folder.parent

    def ids(self) -> set[str]:
        """Machines that have a group in any hierarchy."""
        found: set[str] = set()
        for hierarchy in self.layout.all:
            with contextlib.suppress(FileNotFoundError):
                found |= {entry.name for entry in os.scandir(hierarchy.path / self.parent) if entry.is_dir()}
        return found

    def machine(self, machine_id: str) -> "Group":
        return Group(self.layout, f"{self.parent}/{machine_id}")


@dataclass(frozen=True)
class Group:
    """One machine's group."""

    layout: Layout
    path: str

    def folder(self, controller: str) -> Path:
        return self.layout.chosen[controller].path / self.path

    def _version(self, controller: str) -> int:
        return self.layout.chosen[controller].version

    @property
    def exists(self) -> bool:
        return self.folder("pids").is_dir()

    def create(self, limits: GroupLimits) -> None:
        """Make it and set the limits; reads them back. Raises Internal when the kernel took something else."""
        if not all((hierarchy.path / self.path).parent.is_dir() for hierarchy in self.layout.used):
            Groups(self.layout, str(Path(self.path).parent)).open()  # systemd clears away a unit's when all are empty
        for hierarchy in self.layout.used:
            (hierarchy.path / self.path).mkdir(exist_ok=True)
        self.apply(limits)
        found = self.limits()
        if found != limits:
            raise Internal(f"the control group took {found} instead of {limits}")

    def entrances(self) -> list[str]:
        """Files into which a single-threaded process writes 0 to enter. Of version 1 `tasks`: moving one thread needs
        no global lock, while `cgroup.procs` slows every fork of the boot that follows (20 ms of it)."""
        names = {1: "tasks", 2: "cgroup.procs"}
        return [str(h.path / self.path / names[h.version]) for h in self.layout.used]

    def apply(self, limits: GroupLimits) -> None:
        """Raises Conflict when the machine uses more memory than it would have."""
        cpu, pids = self.folder("cpu"), self.folder("pids")
        if self._version("cpu") == 2:
            write(cpu / "cpu.max", f"{limits.quota} {CPU_PERIOD}")
        else:
            write(cpu / "cpu.cfs_period_us", CPU_PERIOD)
            write(cpu / "cpu.cfs_quota_us", limits.quota)
        self.set_memory(limits.memory)
        write(pids / "pids.max", limits.pids)

    def set_memory(self, limit: int) -> None:
        """Raises Conflict when it uses more."""
        memory = self.folder("memory")
        if self._version("memory") == 2:
            self._refuse_below_usage(number(memory / "memory.current"), limit)
            write(memory / "memory.max", limit)
            if (memory / "memory.swap.max").exists():
                write(memory / "memory.swap.max", 0)
        else:
            self._set_memory_1(memory, limit)

    @staticmethod
    def _refuse_below_usage(usage: int, limit: int) -> None:
        if usage > limit:
            raise Conflict(f"it uses {format_size(usage)} of memory now, more than the new limit")

    def _set_memory_1(self, folder: Path, limit: int) -> None:
        # memory plus swap (absent without swap accounting) may never be below memory: the order depends on direction
        files = [folder / "memory.limit_in_bytes", folder / "memory.memsw.limit_in_bytes"]
        if number(files[0]) < limit:
            files.reverse()
        for file in files:
            if not file.exists():
                continue
            try:
                write(file, limit)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    self._refuse_below_usage(limit + 1, limit)
                raise

    def limits(self) -> GroupLimits:
        """What the kernel enforces now."""
        cpu, memory, pids = (self.folder(name) for name in ("cpu", "memory", "pids"))
        if self._version("cpu") == 2:
            quota = (read(cpu / "cpu.max") or "").split()[:1]
            cpu_quota = int(quota[0]) if quota and quota[0].isdigit() else 0
        else:
            cpu_quota = number(cpu / "cpu.cfs_quota_us")
        limit = "memory.max" if self._version("memory") == 2 else "memory.limit_in_bytes"
        return GroupLimits(cpu_quota, number(memory / limit), number(pids / "pids.max"))

    def pids(self) -> list[int]:
        """Processes in it, in any hierarchy; zombies are not listed."""
        found: set[int] = set()
        for hierarchy in self.layout.all:
            found.update(int(pid) for pid in (read(hierarchy.path / self.path / "cgroup.procs") or "").split())
        return sorted(found - {0})

    def members(self) -> set[int]:
        """As `pids`, of our own hierarchy alone."""
        return {int(pid) for pid in (read(self.folder("pids") / "cgroup.procs") or "").split()}

    def usage(self) -> MachineUsage | None:
        if not self.exists:
            return None
        cpu, memory = self.folder("cpuacct"), self.folder("memory")
        if self._version("cpuacct") == 2:
            seconds = number(cpu / "cpu.stat", "usage_usec") / 1e6
        else:
            seconds = number(cpu / "cpuacct.usage") / 1e9
        if self._version("memory") == 2:
            used, idle = number(memory / "memory.current"), number(memory / "memory.stat", "inactive_file")
        else:
            used, idle = number(memory / "memory.usage_in_bytes"), number(memory / "memory.stat", "total_inactive_file")
        processes = number(self.folder("pids") / "pids.current")
        return MachineUsage(seconds, max(0, used - idle), processes, self.oom_kills())

    def oom_kills(self) -> int:
        file = "memory.events" if self._version("memory") == 2 else "memory.oom_control"
        return number(self.folder("memory") / file, "oom_kill")

    def refused_processes(self) -> int:
        """How often its pids limit refused one more process or thread."""
        return number(self.folder("pids") / "pids.events", "max")

    @property
    def frozen(self) -> bool:
        """True also while it is becoming frozen."""
        folder = self.folder("freezer")
        if self._version("freezer") == 2:
            return read(folder / "cgroup.freeze") == "1"
        return read(folder / "freezer.state") in {"FROZEN", "FREEZING"}

    def freeze(self, timeout: float = 5.0) -> None:
        """Returns when no process of it runs. Raises DeadlineExceeded, and leaves it running then."""
        folder = self.folder("freezer")
        stopped = _freeze_2(folder, timeout) if self._version("freezer") == 2 else _freeze_1(folder, timeout)
        if not stopped:
            self.thaw()
            raise DeadlineExceeded(f"its processes did not stop within {timeout:g} s")

    def thaw(self) -> None:
        folder = self.folder("freezer")
        with contextlib.suppress(FileNotFoundError):
            if self._version("freezer") == 2:
                write(folder / "cgroup.freeze", 0)
            else:
                write(folder / "freezer.state", "THAWED")

    def signal_all(self) -> list[int]:
        """SIGKILL to all that are in it, frozen or not; returns their ids."""
        pids = self.pids()
        killer = self.folder("pids") / "cgroup.kill"
        if killer.exists():
            with contextlib.suppress(OSError):
                write(killer, 1)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # the freezer of version 1 holds killed processes, too; they end before their next instruction
        if self._version("freezer") == 1 and self.frozen:
            self.thaw()
        return pids

    def remove(self, timeout: float = 5.0) -> None:
        """Remove it from every hierarchy, also from those that a runtime entered by itself. Raises Internal."""
        deadline = time.monotonic() + timeout
        for hierarchy in self.layout.all:
            _remove(hierarchy, self.path, deadline)


def _hand_down(folder: Path, controllers: set[str]) -> None:
    """Switch them on for the groups below one of version 2."""
    switches = folder / "cgroup.subtree_control"
    missing = sorted(controllers - set((read(switches) or "").split()))
    if not missing:
        return
    text = " ".join(f"+{name}" for name in missing)
    try:
        write(switches, text)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _vacate(folder)  # the kernel lets only groups without processes hand down
        write(switches, text)


def _vacate(folder: Path) -> None:
    """Its own processes go into a group below: those that hold a group for us, as in a unit of systemd's."""
    holder = folder / "holder"
    holder.mkdir(exist_ok=True)
    for pid in (read(folder / "cgroup.procs") or "").split():
        with contextlib.suppress(ProcessLookupError):
            write(holder / "cgroup.procs", pid)


def _remove(hierarchy: Hierarchy, path: str, deadline: float) -> None:
    folder = hierarchy.path / path
    while True:
        try:
            for child in sorted(folder.rglob("*/"), reverse=True):
                if child.is_dir():
                    child.rmdir()
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            # a process that ended a moment ago still counts for an instant after its pidfd became readable
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise Internal(f"the control group {path} cannot be removed: {error.strerror}") from error
            time.sleep(_STEP)


def _freeze_1(folder: Path, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while True:
        write(folder / "freezer.state", "FROZEN")  # again each time: a fork in between may have escaped
        if read(folder / "freezer.state") == "FROZEN":
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_STEP)


def _freeze_2(folder: Path, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    events = os.open(folder / "cgroup.events", os.O_RDONLY)
    try:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        write(folder / "cgroup.freeze", 1)
        while b"frozen 1" not in os.pread(events, 4096, 0):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll.poll(left * 1000)
        return True
    finally:
        os.close(events)
