"""A runtime's machines on this node: group, folder and processes of each. Both drivers are built on it.

It keeps no state. What it does not know is which process is a machine's first and what the runtime itself leaves on
disk; the driver says so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync

from sandkeep.contracts.runtime import MachinePlan, MachineState, MachineUsage, MemorySigns
from sandkeep.domain.errors import Internal, NotFound
from sandkeep.drivers.runtime._oci import exits, kernel_log
from sandkeep.drivers.runtime._oci.cgroup import Group, Groups
from sandkeep.drivers.runtime._oci.folders import Folders
from sandkeep.drivers.runtime._oci.limits import GroupLimits
from sandkeep.drivers.runtime._oci.rootfs import check_root
from sandkeep.lib import process

_KILL_DEADLINE = 15.0
_LAST_WORDS = 2.0
"""Seconds, both."""

ENTER = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 90; shift; done; shift; exec "$@"'
"""Shell: writes 0 into each file before `--`, which moves this very process into the group, then becomes a program."""


@dataclass(frozen=True)
class Runtime:
    """What a driver knows. leaders: machine id -> the processes whose death is the machine's, also dead ones; known:
    ids in the runtime's own folder; forget: remove all that it keeps there of a machine."""

    leaders: Callable[[str], tuple[int, ...]]
    known: Callable[[], set[str]]
    forget: Callable[[str], None]


class Machines:
    def __init__(self, folders: Folders, groups: Groups, runtime: Runtime) -> None:
        self.folders = folders
        self.groups = groups
        self._runtime = runtime

    def group(self, machine_id: str) -> Group:
        return self.groups.machine(machine_id)

    async def prepare(self, plan: MachinePlan, config: dict[str, Any], limits: GroupLimits) -> Path:
        """Bundle and group of a new machine; returns the bundle. Raises InvalidArgument for a root that is unsafe."""

        def make() -> Path:
            check_root(plan.root)
            bundle = self.folders.create(plan.id, config)
            self.group(plan.id).create(limits)
            return bundle

        return await run_sync(make)

    async def run(self, machine_id: str, argv: list[str], timeout: float, *, may_gain: bool) -> None:
        """Run the runtime's command, whose output the machine inherits. Raises Internal with what it printed. may_gain:
        programs inside are the host's processes, and may be setuid ones."""
        try:
            with self.folders.open_log(machine_id) as log:
                await process.run(argv, timeout=timeout, output=log, umask=0o022, may_gain=may_gain)
        except (process.ProgramError, process.ProgramTimeoutError) as error:
            printed = self.folders.tail(machine_id, 2000).strip()
            raise Internal(f"the machine did not start: {printed or error}", printed=printed) from error
        if not self.pids(machine_id):
            raise Internal(f"the machine ended at once: {self.folders.tail(machine_id, 2000).strip() or 'no output'}")

    def pids(self, machine_id: str) -> tuple[int, ...]:
        """The leaders, when they all live. Membership in the machine's group proves that a process id is not reused."""
        members = self.group(machine_id).members()
        leaders = self._runtime.leaders(machine_id)
        return leaders if leaders and members.issuperset(leaders) else ()

    def require(self, machine_id: str) -> tuple[int, ...]:
        pids = self.pids(machine_id)
        if not pids:
            raise NotFound(f"machine {machine_id} does not run")
        return pids

    async def kill(self, machine_id: str) -> None:
        """Every process, then everything that is left on the host. No error when there is no such machine."""
        with anyio.CancelScope(shield=True):
            group = self.group(machine_id)
            deadline = anyio.current_time() + _KILL_DEADLINE
            while pids := await run_sync(group.signal_all):
                if not await process.wait_gone(pids, max(0.1, deadline - anyio.current_time())):
                    raise Internal(f"processes {pids} of machine {machine_id} do not die")
            await run_sync(self._remove, machine_id)

    def _remove(self, machine_id: str) -> None:
        self.group(machine_id).remove()
        self._runtime.forget(machine_id)
        self.folders.remove(machine_id)

    async def freeze(self, machine_id: str) -> None:
        def change() -> None:
            self.require(machine_id)
            self.group(machine_id).freeze()

        await run_sync(change)

    async def thaw(self, machine_id: str) -> None:
        def change() -> None:
            self.group(machine_id).thaw()  # also what is left of one that died in part: frozen, it would never end
            self.require(machine_id)

        await run_sync(change)

    async def states(self) -> list[MachineState]:
        def look() -> list[MachineState]:
            found = self.groups.ids() | self.folders.ids() | self._runtime.known()
            return [
                MachineState(name, self.pids(name), self.group(name).frozen, self.folders.agent(name))
                for name in sorted(found)
            ]

        return await run_sync(look)

    async def wait_exit(self, machine_id: str) -> str:
        pids = self.pids(machine_id)
        group = self.group(machine_id)
        if not pids and not group.exists:
            return "there is no such machine"
        status = await _ended(pids)
        panic = self.folders.panic(machine_id)
        text = panic.read_text(errors="replace")[:1000] if panic.exists() else ""
        return exits.describe(status, group.oom_kills(), text, crowded=group.refused_processes() > 0)

    async def set_limits(self, machine_id: str, limits: GroupLimits) -> None:
        def change() -> None:
            self.require(machine_id)
            self.group(machine_id).apply(limits)

        await run_sync(change)

    async def other_limits(self, machine_id: str, limits: GroupLimits) -> str:
        now = await run_sync(self.group(machine_id).limits)
        return "" if now == limits else f"{now}, not {limits}"

    async def usage(self, machine_id: str) -> MachineUsage | None:
        def look() -> MachineUsage | None:
            self.folders.trim(machine_id)
            return self.group(machine_id).usage()

        return await run_sync(look)

    async def memory_signs(self) -> dict[str, MemorySigns]:
        def look() -> dict[str, MemorySigns]:
            found = {}
            for name in self.folders.ids():
                self.folders.trim(name)
                found[name] = MemorySigns(self.group(name).oom_kills(), self.folders.printed(name))
            return found

        return await run_sync(look)

    async def killed(self, machine_id: str) -> list[str]:
        return await run_sync(kernel_log.killed, self.group(machine_id).path)

    async def log(self, machine_id: str, limit: int) -> str:
        return await run_sync(self.folders.tail, machine_id, limit)


async def _ended(leaders: tuple[int, ...]) -> int | None:
    """How the first leader ended. It follows the others, unless it is frozen: then nobody tells."""
    status: int | None = None
    async with anyio.create_task_group() as tasks:

        async def follow(pid: int) -> None:
            await exits.wait(pid)
            await anyio.sleep(_LAST_WORDS)
            tasks.cancel_scope.cancel()

        for pid in leaders[1:]:
            tasks.start_soon(follow, pid)
        if leaders:
            status = await exits.wait(leaders[0])
        tasks.cancel_scope.cancel()
    return status
