"""`Disks` in plain folders: for hosts without btrfs and simple quotas. No limit on size; clones are copies or reflinks.

Copies are made by cp(1), which keeps owners, xattrs, links, holes and device numbers and never reads a FIFO. Whatever
is copied lies beside its place until it is whole.
"""

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import anyio.to_thread

from sandkeep.contracts.disks import DiskFacts, GenerationSize, GenerationSizes, PoolContents, PoolSpace, Touched
from sandkeep.domain.capability import DiskCapabilities
from sandkeep.domain.errors import Internal, InvalidArgument, NoCapacity, NotFound, Unavailable
from sandkeep.drivers.disk import mounts
from sandkeep.drivers.disk.layout import DISK, FICLONE, GENERATIONS, PARTIAL, Layout, share_files, survey
from sandkeep.drivers.disk.tree import changed_since, tree_size
from sandkeep.lib import process

T = TypeVar("T")


@dataclass(frozen=True)
class DirectorySettings:
    folder: Path
    reserve: int = 64 << 20
    """Bytes that stay free: below, nothing new is made."""
    copy_timeout: float = 900.0
    """Seconds that one copy or removal may take."""


class DirectoryDisks:
    def __init__(self, settings: DirectorySettings) -> None:
        self._settings = replace(settings, folder=Path(os.path.abspath(settings.folder)))
        self._layout = Layout(self._settings.folder)
        self.capabilities = DiskCapabilities(
            kind="dir",
            hard_limit=False,
            copy_on_write=False,
            notes=("Disks have no size limit: one sandbox can fill the host's file system.",),
        )

    async def open(self) -> None:
        try:
            self._layout.pool.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._layout.make()
            reflinks = await anyio.to_thread.run_sync(_reflinks, self._layout.pool)
        except OSError as error:
            raise Unavailable(f"The pool cannot be opened: {error.strerror}", path=str(self._layout.pool)) from error
        self.capabilities = replace(self.capabilities, copy_on_write=reflinks)

    async def close(self) -> bool:
        """Nothing is held."""
        return True

    async def space(self) -> PoolSpace:
        found = os.statvfs(self._layout.pool)
        return PoolSpace(total=found.f_blocks * found.f_frsize, free=found.f_bavail * found.f_frsize)

    async def contents(self) -> PoolContents:
        return (await _thread(survey, self._layout)).contents

    async def discard_partial(self) -> list[str]:
        partials = (await _thread(survey, self._layout)).partials
        await self._remove(*partials)
        return [str(path.relative_to(self._layout.pool)) for path in partials]

    async def facts(self, sandbox_id: str) -> DiskFacts:
        return await _thread(self._layout.facts, sandbox_id)

    async def sync(self) -> None:
        await _thread(mounts.sync_filesystem, self._layout.pool)

    # templates

    async def begin_template(self, template_id: str) -> Path:
        fresh = self._layout.unsealed(template_id)
        if self._layout.template(template_id).exists():
            return self._layout.template(template_id)
        await self._need_room()
        await self._remove(fresh)
        fresh.mkdir()
        fresh.chmod(0o755)
        return fresh

    async def finish_template(self, template_id: str) -> int:
        fresh, sealed = self._layout.unsealed(template_id), self._layout.template(template_id)
        if not sealed.exists():
            if not fresh.exists():
                raise NotFound(f"There is no template {template_id} in the pool")
            await self.sync()
            fresh.rename(sealed)
            await self.sync()
        return await _thread(tree_size, sealed)

    async def template_from_disk(self, template_id: str, sandbox_id: str, generation_id: str | None = None) -> int:
        source = self._layout.source(sandbox_id, generation_id)
        await self._copy(source, self._layout.template(template_id))
        await self.sync()
        return await _thread(tree_size, self._layout.template(template_id))

    async def delete_template(self, template_id: str) -> None:
        await self._remove_whole(self._layout.template(template_id))

    # disks and generations

    async def create(self, sandbox_id: str, template_id: str, limit: int) -> Path:
        _check_limit(limit)
        source, disk = self._layout.template(template_id), self._layout.disk(sandbox_id)
        await self._copy(source, disk)
        await _thread(self._layout.note_origin, sandbox_id, template_id)
        return disk

    async def fork(self, sandbox_id: str, source_id: str, generation_id: str, limit: int) -> Path:
        _check_limit(limit)
        self._known(source_id)
        disk = self._layout.disk(sandbox_id)
        await self._copy(self._layout.generation_disk(source_id, generation_id), disk)
        origin = (await self.facts(source_id)).template
        if origin:
            await _thread(self._layout.note_origin, sandbox_id, origin)
        return disk

    async def begin_disk(self, sandbox_id: str, limit: int) -> Path:
        _check_limit(limit)
        self._layout.check_no_disk(sandbox_id)
        await self._need_room()
        home = self._layout.sandbox(sandbox_id)
        home.mkdir(mode=0o700, exist_ok=True)
        return await self._begun(home)

    async def finish_disk(self, sandbox_id: str) -> Path:
        return self._layout.finish_disk(sandbox_id)

    async def begin_generation(self, sandbox_id: str, generation_id: str, limit: int) -> Path:
        _check_limit(limit)
        self._layout.check_no_generation(sandbox_id, generation_id)
        await self._need_room()
        self._layout.sandbox(sandbox_id).mkdir(mode=0o700, exist_ok=True)
        self._layout.make_generation(sandbox_id, generation_id)
        return await self._begun(self._layout.generation(sandbox_id, generation_id))

    async def _begun(self, folder: Path) -> Path:
        fresh = folder / (DISK + PARTIAL)
        await self._remove(fresh)
        fresh.mkdir()
        fresh.chmod(0o755)
        return fresh

    async def finish_generation(self, sandbox_id: str, generation_id: str) -> None:
        disk = self._layout.generation_disk(sandbox_id, generation_id)
        if not disk.exists():
            self._layout.begun_generation(sandbox_id, generation_id).rename(disk)

    async def drop_disk(self, sandbox_id: str) -> None:
        home = self._layout.sandbox(sandbox_id)
        await self._remove_whole(home / DISK)
        if home.exists() and not self._layout.has_generations(sandbox_id):
            await self._remove(home)

    def path(self, sandbox_id: str) -> Path:
        return self._layout.disk(sandbox_id)

    async def set_limit(self, sandbox_id: str, limit: int) -> None:
        _check_limit(limit)
        self._known(sandbox_id)

    async def used(self, sandbox_id: str) -> int:
        home = self._known(sandbox_id)
        generations = home / GENERATIONS
        folders = [home / DISK]
        if generations.exists():
            folders += [generation / DISK for generation in generations.iterdir()]
        return sum([await _thread(tree_size, folder) for folder in folders if folder.exists()])

    async def delete(self, sandbox_id: str) -> None:
        """Generations first: a crash in between leaves a whole sandbox with fewer of them, for the next delete."""
        home = self._layout.sandbox(sandbox_id)
        if not home.exists():
            return
        if (home / GENERATIONS).exists():
            for generation in (home / GENERATIONS).iterdir():
                await self._remove_whole(generation / DISK)
        await self._remove_whole(home / DISK)
        await self._remove(home)

    async def snapshot(self, sandbox_id: str, generation_id: str) -> None:
        self._known(sandbox_id)
        await self._copy(
            self._layout.disk(sandbox_id),
            self._layout.generation_disk(sandbox_id, generation_id),
            lambda: self._layout.make_generation(sandbox_id, generation_id),
        )

    async def restore(self, sandbox_id: str, generation_id: str) -> Path:
        disk, source = self._layout.disk(sandbox_id), self._layout.generation_disk(sandbox_id, generation_id)
        self._layout.check_generation(sandbox_id, generation_id)
        fresh = disk.with_name(DISK + PARTIAL)
        await self._fill(source, fresh)
        if disk.exists():
            mounts.exchange(fresh, disk)
            await self._remove(fresh)
        else:
            fresh.rename(disk)
        return disk

    async def check_generation(self, sandbox_id: str, generation_id: str) -> None:
        await _thread(self._layout.check_generation, sandbox_id, generation_id)

    async def copy_generation(
        self, sandbox_id: str, generation_id: str, source_id: str, source_generation_id: str
    ) -> None:
        self._known(sandbox_id)

        def prepare() -> None:
            memory = self._layout.make_generation(sandbox_id, generation_id)
            share_files(self._layout.memory(source_id, source_generation_id), memory)

        await self._copy(
            self._layout.generation_disk(source_id, source_generation_id),
            self._layout.generation_disk(sandbox_id, generation_id),
            prepare,
        )

    async def came_from(self, sandbox_id: str, owner_id: str, generation_id: str) -> bool | None:
        return None

    async def drop_generation(self, sandbox_id: str, generation_id: str) -> None:
        await self._remove_whole(self._layout.generation_disk(sandbox_id, generation_id))
        await self._remove(self._layout.generation(sandbox_id, generation_id))

    async def changed(self, sandbox_id: str, generation_id: str) -> bool:
        """By the time at which the kernel last changed an inode, which nobody inside can set. What was restored is all new."""
        self._layout.check_generation(sandbox_id, generation_id)
        copied = os.lstat(self._layout.generation(sandbox_id, generation_id)).st_mtime_ns  # when the copy got its name
        return await _thread(changed_since, self._layout.disk(sandbox_id), copied)

    async def measure(self, sandbox_id: str, generations: Sequence[tuple[str, str | None]]) -> GenerationSizes:
        """Each is a copy of its own; where they are reflinks, what they share counts for each."""
        sizes: dict[str, GenerationSize] = {}
        shares = []
        for generation, _ in generations:
            self._layout.check_generation(sandbox_id, generation)
            size = await _thread(tree_size, self._layout.generation_disk(sandbox_id, generation))
            sizes[generation] = GenerationSize(None, size)
            shares.append((generation, generation, size))
        return GenerationSizes(sizes, tuple(shares))

    def generation_path(self, sandbox_id: str, generation_id: str) -> Path:
        return self._layout.generation_disk(sandbox_id, generation_id)

    async def touched(self, before: tuple[str, str], after: tuple[str, str]) -> Touched | None:
        """A copy has its own inodes: nothing tells what is as it was."""
        for one in (before, after):
            await self.check_generation(*one)
        return None

    async def mark(self, sandbox_id: str, name: str) -> int | None:
        return None

    async def inodes_since(self, sandbox_id: str, name: str, moment: int) -> frozenset[int] | None:
        return None

    def memory_folder(self, sandbox_id: str, generation_id: str) -> Path:
        return self._layout.memory(sandbox_id, generation_id)

    async def make_memory_folder(self, sandbox_id: str, generation_id: str) -> Path:
        self._known(sandbox_id)
        return self._layout.make_generation(sandbox_id, generation_id)

    # copying and removing

    def _known(self, sandbox_id: str) -> Path:
        home = self._layout.sandbox(sandbox_id)
        if not home.exists():
            raise NotFound(f"There is no disk of {sandbox_id} in the pool")
        return home

    async def _need_room(self, size: int = 0) -> None:
        free = (await self.space()).free
        if free < self._settings.reserve + size:
            raise NoCapacity("The pool is full", hint="Delete sandboxes or snapshots.", pool_free=free)

    async def _copy(self, source: Path, target: Path, prepare: Callable[[], object] | None = None) -> None:
        """`target` is there whole or not at all."""
        if target.exists():
            return
        if not source.exists():
            raise NotFound(f"There is no {source.relative_to(self._layout.pool)} in the pool")
        await self._need_room(0 if self.capabilities.copy_on_write else await _thread(tree_size, source))
        prepare() if prepare else target.parent.mkdir(mode=0o700, exist_ok=True)
        fresh = target.with_name(target.name + PARTIAL)
        await self._fill(source, fresh)
        fresh.rename(target)

    async def _fill(self, source: Path, fresh: Path) -> None:
        await self._remove(fresh)
        argv = ["cp", "--archive", "--reflink=auto", "--sparse=auto", "--one-file-system", "--no-target-directory"]
        try:
            await self._program(*argv, "--", str(source), str(fresh))
        except (process.ProgramError, process.ProgramTimeoutError) as error:
            await self._remove(fresh)
            if os.strerror(errno.ENOSPC) in str(error):
                await self._need_room(1 << 62)  # says how much is free now
            raise Internal(f"A disk could not be copied: {str(error)[-300:]}") from error

    async def _remove_whole(self, path: Path) -> None:
        """As partial from the first moment on, so that a crash cannot leave half of it looking whole."""
        gone = path.with_name(path.name + PARTIAL)
        await self._remove(gone)
        if path.exists():
            path.rename(gone)
            await self._remove(gone)

    async def _remove(self, *paths: Path) -> None:
        """By rm(1): it goes as deep as a guest may have dug, and never through a link."""
        present = [str(path) for path in paths if os.path.lexists(path)]
        if not present:
            return
        try:
            await self._program("rm", "--recursive", "--force", "--one-file-system", "--", *present)
        except (process.ProgramError, process.ProgramTimeoutError) as error:
            raise Internal(f"A disk could not be removed: {error}") from error

    async def _program(self, *argv: str) -> None:
        await process.run(argv, timeout=self._settings.copy_timeout)


def _check_limit(limit: int) -> None:
    if not 0 < limit < 2**63:
        raise InvalidArgument("A disk's limit is a number of bytes above zero")


def _reflinks(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as one, tempfile.TemporaryFile(dir=folder) as other:
        one.write(b"x" * 4096)
        one.flush()
        try:
            fcntl.ioctl(other.fileno(), FICLONE, one.fileno())
        except OSError:
            return False
        return True


async def _thread(call: Callable[..., T], *args: object) -> T:
    return await anyio.to_thread.run_sync(call, *args)
