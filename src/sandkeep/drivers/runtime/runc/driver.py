"""The runc driver: containers on the host's own kernel. Isolation enough for one's own code, not for strangers'."""

import re
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync

from sandkeep.contracts.runtime import MachinePlan, MachineState, MachineUsage, MemoryImage, MemorySigns
from sandkeep.domain.capability import RuntimeCapabilities
from sandkeep.domain.errors import Conflict, SandkeepError, Unsupported
from sandkeep.domain.sandbox import Hold, Limits, Persistence, RuntimeKind
from sandkeep.drivers.runtime._oci.cgroup import Groups
from sandkeep.drivers.runtime._oci.config import config
from sandkeep.drivers.runtime._oci.folders import Folders
from sandkeep.drivers.runtime._oci.layout import detect
from sandkeep.drivers.runtime._oci.limits import for_native
from sandkeep.drivers.runtime._oci.machines import ENTER, Machines, Runtime
from sandkeep.drivers.runtime.runc import state
from sandkeep.lib import process

_BOOT_TIMEOUT = 60.0
_STARTING_PIDS = 64
"""Threads of runc itself, which is in the machine's group until it has started it."""
_NO_MEMORY = "runc cannot save memory: use gvisor, or keep the sandbox's disk (persistence volume)"
_SAFE_SINCE = {(1, 3): 6, (1, 4): 3}
"""Minor versions and their first release without the escapes of 2025 and 2026 (CVE-2025-31133, -52565, -52881)."""


class RuncRuntime:
    """run_folder: of the instance, on a tmpfs; binary: runc; cgroup_parent: such as `sandkeep-<instance>`, below which
    `runc/<machine id>` is made."""

    def __init__(self, run_folder: Path, binary: Path, cgroup_parent: str) -> None:
        self._binary = binary
        self._parent = cgroup_parent
        self._folders = Folders(run_folder / "runc")
        self._opened: Machines | None = None
        self.capabilities = _capabilities("", reason="it was not opened")

    async def open(self) -> None:
        try:
            done = await process.run([str(self._binary), "--version"], timeout=10)
            layout = detect(Path("/proc/self/mountinfo").read_text(), self._parent)
            groups = Groups(layout, f"{self._parent}/runc")
            await run_sync(groups.open)
            await self._folders.open()
        except (SandkeepError, OSError, process.ProgramError, process.ProgramMissingError) as error:
            self.capabilities = _capabilities("", reason=str(error))
            return
        root = self._folders.state
        runtime = Runtime(self._leaders, lambda: state.known(root), lambda name: state.forget(root, name))
        self._opened = Machines(self._folders, groups, runtime)
        found = re.search(r"version (\S+)", done.stdout)
        self.capabilities = _capabilities(found[1] if found else "unknown")

    async def close(self) -> None:
        await self._folders.close()
        if self._opened:
            await run_sync(self._opened.groups.close)

    @property
    def _machines(self) -> Machines:
        if self._opened is None:
            raise Unsupported(f"runc cannot be used on this host: {self.capabilities.reason}")
        return self._opened

    def _leaders(self, machine_id: str) -> tuple[int, ...]:
        pid = state.init_pid(self._folders.state, machine_id)
        return (pid,) if pid else ()

    async def boot(self, plan: MachinePlan) -> None:
        """runc is started inside the machine's group, so that nothing of it is elsewhere when it is killed half-way."""
        group = self._machines.group(plan.id)
        nofile = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        oci = config(plan, gvisor=False, nofile=nofile, cgroup=group.path)
        if await run_sync(self._folders.bundle(plan.id).exists):
            raise Conflict(f"there is a machine {plan.id} already")
        try:
            limits = for_native(plan.limits)
            bundle = await self._machines.prepare(plan, oci, replace(limits, pids=limits.pids + _STARTING_PIDS))
            enter = ["/bin/sh", "-c", ENTER, "sh", *group.entrances(), "--"]
            run = [str(self._binary), f"--root={self._folders.state}", "run", "--detach", f"--bundle={bundle}", plan.id]
            await self._machines.run(plan.id, [*enter, *run], _BOOT_TIMEOUT, may_gain=True)
            await run_sync(group.apply, limits)
        except BaseException:
            await self._machines.kill(plan.id)
            raise

    async def kill(self, machine_id: str) -> None:
        await self._machines.kill(machine_id)

    async def freeze(self, machine_id: str) -> None:
        await self._machines.freeze(machine_id)

    async def thaw(self, machine_id: str) -> None:
        await self._machines.thaw(machine_id)

    async def prepare_save(self, machine_id: str) -> None:
        raise Unsupported(_NO_MEMORY)

    async def save(self, machine_id: str, folder: Path) -> MemoryImage:
        raise Unsupported(_NO_MEMORY)

    async def restore(self, plan: MachinePlan, folder: Path, image: MemoryImage) -> None:
        raise Unsupported(_NO_MEMORY)

    def check_image(self, image: MemoryImage) -> None:
        raise Unsupported(_NO_MEMORY)

    async def keep_builds(self, images: list[dict[str, Any]]) -> None:
        """Saves no images."""

    async def set_limits(self, machine_id: str, limits: Limits) -> None:
        await self._machines.set_limits(machine_id, for_native(limits))

    async def other_limits(self, machine_id: str, limits: Limits) -> str:
        return await self._machines.other_limits(machine_id, for_native(limits))

    async def machines(self) -> list[MachineState]:
        return await self._machines.states() if self._opened else []

    async def wait_exit(self, machine_id: str) -> str:
        return await self._machines.wait_exit(machine_id)

    async def usage(self, machine_id: str) -> MachineUsage | None:
        return await self._machines.usage(machine_id)

    async def memory_signs(self) -> dict[str, MemorySigns]:
        return await self._machines.memory_signs()

    async def killed(self, machine_id: str) -> list[str]:
        return await self._machines.killed(machine_id)

    async def log(self, machine_id: str, limit: int) -> str:
        return await self._machines.log(machine_id, limit)


def _capabilities(version: str, reason: str = "") -> RuntimeCapabilities:
    return RuntimeCapabilities(
        kind=RuntimeKind.RUNC,
        available=not reason,
        version=version,
        isolation="namespaces, capabilities and a system call filter on the host's own kernel",
        trusted_code_only=True,
        persistence=frozenset({Persistence.EPHEMERAL, Persistence.VOLUME, Persistence.SNAPSHOT})
        if not reason
        else frozenset(),
        holds=frozenset({Hold.MEMORY}) if not reason else frozenset(),
        unsupported={
            "full": _NO_MEMORY,
            "own_cpus": "nproc inside shows the host's processors; the limit is on their time",
            "own_df": "df inside shows the whole pool; the sandbox's own limit is met as a quota error, and stats shows it",
            "own_memory": "free and /proc inside show the host's memory; the limit holds all the same",
        },
        notes=()
        if reason or _is_safe(version)
        else (f"runc {version} has known ways out for whoever makes the image",),
        reason=reason,
    )


def _is_safe(version: str) -> bool:
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if not found:
        return False
    major, minor, patch = map(int, found.groups())
    first = _SAFE_SINCE.get((major, minor))
    return patch >= first if first is not None else (major, minor) >= (1, 5)
