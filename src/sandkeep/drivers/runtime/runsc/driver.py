"""The gVisor driver: the guest's kernel is a process of the host, which can also write its guest's memory to disk."""

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync

from sandkeep.contracts.runtime import MachinePlan, MachineState, MachineUsage, MemoryImage, MemorySigns
from sandkeep.domain.capability import RuntimeCapabilities
from sandkeep.domain.errors import Conflict, Internal, NoCapacity, NotFound, PauseFailed, SandkeepError, Unsupported
from sandkeep.domain.quantities import MIB
from sandkeep.domain.sandbox import Hold, Limits, Persistence, RuntimeKind
from sandkeep.drivers.runtime._oci.cgroup import Groups
from sandkeep.drivers.runtime._oci.config import config
from sandkeep.drivers.runtime._oci.folders import Folders
from sandkeep.drivers.runtime._oci.layout import detect
from sandkeep.drivers.runtime._oci.limits import for_gvisor
from sandkeep.drivers.runtime._oci.machines import Machines, Runtime
from sandkeep.drivers.runtime.runsc import build, command, control, reasons, state
from sandkeep.drivers.runtime.runsc.builds import Builds, identity
from sandkeep.lib import process

_BOOT_TIMEOUT, _SAVE_TIMEOUT, _RESTORE_TIMEOUT = 60.0, 240.0, 280.0
_PAUSED = "paused"
"""Marker in the bundle: gVisor was told to pause once more than to resume. It is written first, since a resume too many
would end the sandbox, and a restarted runner cannot ask."""


_SAVING = 512 * MIB
_SETTLE = 0.005
"""Seconds that a stopped guest's network stack, which is not stopped, gets for the answers to what was sent last: it
cannot save a connection that waits for one."""


class GvisorRuntime:
    """run_folder: of the instance, on a tmpfs; binary: runsc; cgroup_parent: such as `sandkeep-<instance>`, below which
    `gvisor/<machine id>` is made; platform: auto, ptrace or systrap; approved: SHA-256 sums of builds off the tested
    list on which the deep check has passed; builds: folder in which those that saved an image are put aside, if any."""

    def __init__(
        self,
        run_folder: Path,
        binary: Path,
        cgroup_parent: str,
        platform: str = build.AUTO,
        approved: frozenset[str] = frozenset(),
        builds: Path | None = None,
    ) -> None:
        self._binary = binary
        self._approved = approved
        self._builds = Builds(builds) if builds else None
        self._known: dict[tuple[int, int, int, int], build.Build] = {}
        self._parent = cgroup_parent
        self._platform = platform
        self._folders = Folders(run_folder / "runsc")
        self._opened: Machines | None = None
        self._build: build.Build | None = None
        self.capabilities = _unavailable("it was not opened")

    async def open(self) -> None:
        try:
            version = await build.version(self._binary)
            layout = detect(Path("/proc/self/mountinfo").read_text(), self._parent)
            groups = Groups(layout, f"{self._parent}/gvisor")
            await run_sync(groups.open)
            await self._folders.open()
            chosen = build.choose_platform(self._platform, Path("/proc/cpuinfo").read_text())
            self._build = await run_sync(build.probe, self._binary, version, chosen)
            self._known = {identity(self._binary): self._build}
        except (SandkeepError, OSError, process.ProgramError) as error:
            self.capabilities = _unavailable(str(error))
            return
        root = self._folders.state
        runtime = Runtime(self._leaders, lambda: state.known(root), lambda name: state.forget(root, name))
        self._opened = Machines(self._folders, groups, runtime)
        self.capabilities = _capabilities(self._build, self._approved)

    async def close(self) -> None:
        await self._folders.close()
        if self._opened:
            await run_sync(self._opened.groups.close)

    @property
    def _machines(self) -> Machines:
        if self._opened is None:
            raise Unsupported(f"gVisor cannot be used on this host: {self.capabilities.reason}")
        return self._opened

    def _leaders(self, machine_id: str) -> tuple[int, ...]:
        container = state.load(self._folders.state, machine_id)
        return (container.sentry, container.gofer) if container and container.gofer else ()

    async def boot(self, plan: MachinePlan) -> None:
        async with self._starting(plan) as bundle:
            await self._start(plan, self._binary, command.run(plan.id, bundle), _BOOT_TIMEOUT)

    async def restore(self, plan: MachinePlan, folder: Path, image: MemoryImage) -> None:
        binary = self._fitting(image)
        async with self._starting(plan) as bundle:
            await self._start(plan, binary, command.restore(plan.id, bundle, folder), _RESTORE_TIMEOUT)

    @contextlib.asynccontextmanager
    async def _starting(self, plan: MachinePlan) -> AsyncIterator[Path]:
        """A bundle in a group; all of it goes away when the start fails or is cancelled."""
        oci = config(plan, gvisor=True, nofile=build.open_files_limit())
        if await run_sync(self._folders.bundle(plan.id).exists):
            raise Conflict(f"there is a machine {plan.id} already")
        try:
            yield await self._machines.prepare(plan, oci, for_gvisor(plan.limits))
        except BaseException:
            await self._machines.kill(plan.id)
            raise

    async def _start(self, plan: MachinePlan, binary: Path, arguments: list[str], timeout: float) -> None:
        bundle, online = self._folders.bundle(plan.id), build.online_cpus()
        fstab, meminfo = bundle / "fstab", bundle / "meminfo"
        meminfo.write_text(command.meminfo(plan.limits.memory))
        fstab.write_text(command.fstab(meminfo, plan.agent))
        cpus = command.visible_cpus(plan.limits.cpus, online)
        group = self._machines.group(plan.id)
        flags = command.global_flags(self._folders.state, self._checked_build.platform, self._folders.panic(plan.id))
        prefix = command.launcher(fstab, group.entrances(), cpus)
        await self._machines.run(plan.id, [*prefix, str(binary), *flags, *arguments], timeout, may_gain=False)
        if cpus:
            await run_sync(_run_on, group.pids(), online)

    @property
    def _checked_build(self) -> build.Build:
        if self._build is None:
            raise Unsupported(f"gVisor cannot be used on this host: {self.capabilities.reason}")
        return self._build

    async def kill(self, machine_id: str) -> None:
        await self._machines.kill(machine_id)

    async def freeze(self, machine_id: str) -> None:
        """By the kernel's freezer: it stops the guest's kernel, too, which otherwise uses CPU time for nothing, and it
        can be read afterwards."""
        await self._machines.freeze(machine_id)

    async def thaw(self, machine_id: str) -> None:
        await self._machines.thaw(machine_id)
        marker = self._marker(machine_id)
        if marker.exists():
            await _translated(control.resume(self._socket(machine_id)))
            marker.unlink(missing_ok=True)

    def _marker(self, machine_id: str) -> Path:
        return self._folders.bundle(machine_id) / _PAUSED

    def _socket(self, machine_id: str) -> str:
        container = state.load(self._folders.state, machine_id)
        if container is None:
            raise NotFound(f"machine {machine_id} does not run")
        return container.socket

    def _savable(self, machine_id: str) -> None:
        if Hold.DISK not in self.capabilities.holds:
            raise Unsupported(self.capabilities.unsupported.get("full", "memory cannot be saved here"))
        self._machines.require(machine_id)

    async def prepare_save(self, machine_id: str) -> None:
        self._savable(machine_id)
        if self._machines.group(machine_id).frozen:
            raise Conflict(f"machine {machine_id} is frozen: thaw it before a save is prepared")
        await self._keep_build(machine_id)
        try:
            await self._stop_guest(machine_id)
            await self._checkpoint(machine_id, None)
        except BaseException:
            with anyio.CancelScope(shield=True), contextlib.suppress(SandkeepError):
                await self.thaw(machine_id)
            raise
        await self.thaw(machine_id)

    async def _checkpoint(self, machine_id: str, folder: Path | None) -> None:
        try:
            async with self._room_to_save(machine_id):
                await control.checkpoint(self._socket(machine_id), folder, timeout=_SAVE_TIMEOUT)
        except control.CallFailedError as error:
            sentence, hint = reasons.explain(str(error))
            files = await run_sync(reasons.deleted_files, self._machines.require(machine_id)[0])
            if files and "deleted" in sentence:
                sentence += f" ({', '.join(files[:3])})"
            raise PauseFailed(
                sentence,
                hint=hint,
                files=files[:20],
                gvisor=str(error).partition("\n")[0][:300],
                connecting=reasons.connecting(str(error)),
            ) from error

    @contextlib.asynccontextmanager
    async def _room_to_save(self, machine_id: str) -> AsyncIterator[None]:
        """What gVisor's kernel needs to describe its guest, which stands still meanwhile, does not count against the
        guest's memory: 500 processes in 512 MiB took 500 MiB of it. A runner that dies here leaves the limit as it is."""
        group = self._machines.group(machine_id)
        limit = (await run_sync(group.limits)).memory
        await run_sync(group.set_memory, limit + limit // 2 + _SAVING)
        try:
            yield
        finally:
            with (
                anyio.CancelScope(shield=True),
                contextlib.suppress(OSError, SandkeepError),
            ):  # it may use more, or be gone
                await run_sync(group.set_memory, limit)

    async def save(self, machine_id: str, folder: Path) -> MemoryImage:
        self._savable(machine_id)
        group = self._machines.group(machine_id)
        try:
            await self._stop_guest(machine_id)
            await self._checkpoint(machine_id, folder)
        finally:
            with anyio.CancelScope(shield=True):
                if group.exists:
                    await run_sync(group.freeze)
        return MemoryImage(control.IMAGE_FILES, (await self._build_of(machine_id)).requires())

    async def _stop_guest(self, machine_id: str) -> None:
        group, marker = self._machines.group(machine_id), self._marker(machine_id)
        with anyio.CancelScope(shield=True):  # marker and pause together, or a thaw would resume once too often
            already = marker.exists()
            await run_sync(marker.touch)
            await run_sync(group.thaw)
            if not already:
                await self._pause(machine_id)
        await anyio.sleep(_SETTLE)

    async def _pause(self, machine_id: str) -> None:
        """The marker goes when gVisor did not do it."""
        try:
            await control.pause(self._socket(machine_id))
        except (Internal, control.CallFailedError) as error:
            self._marker(machine_id).unlink(missing_ok=True)
            raise Internal(f"gVisor could not stop its guest: {error}") from error

    def check_image(self, image: MemoryImage) -> None:
        self._fitting(image)

    def _fitting(self, image: MemoryImage) -> Path:
        """The build that saved it: the installed one, or one that was put aside. Raises Unsupported."""
        own, wanted = self._checked_build, str(image.requires.get("sha256"))
        fits = own.sha256 == wanted and self._unchanged
        kept = self._builds.find(wanted) if self._builds and not fits else None
        if kept:
            replace(own, version=str(image.requires.get("version")), sha256=wanted).check(image.requires)
            return kept
        own.check(image.requires)
        if not fits:
            raise Unsupported(
                "the gVisor that saved this memory was replaced", hint="put it back, or start it from its disk"
            )
        return self._binary

    @property
    def _unchanged(self) -> bool:
        """Whether the installed binary still is the one that was looked at."""
        with contextlib.suppress(OSError):
            return self._known.get(identity(self._binary)) == self._build
        return False

    async def _build_of(self, machine_id: str) -> build.Build:
        """Which build runs it, as the kernel knows: its file may have been replaced since it was started."""
        program = Path(f"/proc/{self._machines.require(machine_id)[0]}/exe")
        try:
            key = identity(program)
            if key not in self._known:
                version = await build.version(program)
                self._known[key] = await run_sync(build.probe, program, version, self._checked_build.platform)
        except OSError as error:
            raise NotFound(f"machine {machine_id} does not run") from error
        return self._known[key]

    async def _keep_build(self, machine_id: str) -> None:
        if self._builds is None:
            return
        program = Path(f"/proc/{self._machines.require(machine_id)[0]}/exe")
        found = await self._build_of(machine_id)
        try:
            kept = await run_sync(self._builds.keep, program, found.sha256)
        except OSError as error:
            raise NoCapacity(
                f"the gVisor that runs it cannot be put aside: {error.strerror}", hint="free space in the data folder"
            ) from error
        self._known.setdefault(identity(kept), found)

    async def keep_builds(self, images: list[dict[str, Any]]) -> None:
        if self._builds:
            needed = {str(requires.get("sha256")) for requires in images}
            await run_sync(self._builds.sweep, needed | {self._checked_build.sha256})

    async def set_limits(self, machine_id: str, limits: Limits) -> None:
        """The guest goes on seeing the size with which it was booted."""
        await self._machines.set_limits(machine_id, for_gvisor(limits))

    async def other_limits(self, machine_id: str, limits: Limits) -> str:
        return await self._machines.other_limits(machine_id, for_gvisor(limits))

    async def machines(self) -> list[MachineState]:
        """A machine whose guest gVisor itself stopped (the runner died in the middle of a save) is frozen, too."""
        states = await self._machines.states() if self._opened else []
        return [replace(state, frozen=state.frozen or self._marker(state.id).exists()) for state in states]

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


async def _translated(call: Awaitable[None]) -> None:
    try:
        await call
    except control.CallFailedError as error:
        raise Internal(f"gVisor refused: {error}") from error


def _run_on(pids: list[int], cpus: list[int]) -> None:
    """Let every thread of these processes run on all processors. Twice: a thread may start another meanwhile."""
    for _ in range(2):
        for pid in pids:
            with contextlib.suppress(OSError):
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with contextlib.suppress(OSError):
                        os.sched_setaffinity(int(thread), cpus)


def _unavailable(reason: str) -> RuntimeCapabilities:
    return RuntimeCapabilities(
        kind=RuntimeKind.GVISOR,
        available=False,
        version="",
        isolation=_ISOLATION,
        trusted_code_only=False,
        persistence=frozenset(),
        holds=frozenset(),
        reason=reason,
    )


_XATTRS_SINCE = "20260520"
"""The first release whose gofer passes them on (google/gvisor commit 4e559c2af, see its issue 13295)."""
_ISOLATION = "a kernel of its own in user space (gVisor); no system call of the guest reaches the host's kernel"


def _capabilities(found: build.Build, approved: frozenset[str]) -> RuntimeCapabilities:
    tested = found.version in control.TESTED or found.sha256 in approved
    notes = [f"platform {found.platform}"]
    unsupported = {
        "nested_containers": "gVisor's guest has no cgroups and no devices of the host",
        "set_user_id": "programs gain no privileges by their set-user-ID bit; sudo works, through the agent, for accounts with "
        "NOPASSWD: ALL",
        "own_cpus": "nproc inside shows the processors of the sandbox's limit, but never less than two of the host's",
        "live_memory": "a running guest keeps the size of memory that it was booted with: more of it is there from the next "
        "start, or resume from disk; less is enforced at once",
        "stopped_groups": "a command that stops one of its children gets SIGHUP when another of them ends; a shell with job "
        "control (set -m) does not",
        "own_df": "df inside shows the whole pool; the sandbox's own limit is met as a quota error, and stats shows it",
        "pids": "the pids limit protects the host; reaching it ends the sandbox (its disk survives)",
    }
    if found.version < _XATTRS_SINCE:
        unsupported["xattrs"] = (
            "this gVisor has extended attributes on tmpfs only: on the disk they are refused (EOPNOTSUPP), "
            "those of symlinks with EBADF, which `ls -l` complains of"
        )
    unsupported["hard_link_attributes"] = (
        "owner, mode and times that a file is given under one of its names show under the others after a restart"
    )
    if tested:
        notes.append("a save of memory (pause to disk, full snapshot or fork) resets the sandbox's outside connections")
    else:
        known = ", ".join(sorted(control.TESTED))
        unsupported["full"] = (
            f"memory is saved by an internal interface, tested with gVisor {known}, not {found.version}; "
            "sandkeep doctor --deep tests this build"
        )
    return RuntimeCapabilities(
        kind=RuntimeKind.GVISOR,
        available=True,
        version=found.version,
        isolation=_ISOLATION,
        trusted_code_only=False,
        persistence=frozenset(
            {Persistence.EPHEMERAL, Persistence.VOLUME, Persistence.SNAPSHOT, *([Persistence.FULL] if tested else [])}
        ),
        holds=frozenset(Hold) if tested else frozenset({Hold.MEMORY}),
        unsupported=unsupported,
        notes=tuple(notes),
    )
