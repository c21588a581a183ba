"""`Disks` on btrfs. Every making step is one ioctl that either happened or did not, so a crash leaves little to clear.

Blocking calls run in worker threads, one thread call per operation. The engine serialises what concerns one sandbox.
"""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from sandkeep.contracts.disks import DiskFacts, GenerationSizes, PoolContents, PoolSpace, Touched
from sandkeep.domain.capability import DiskCapabilities
from sandkeep.domain.errors import Internal, InvalidArgument, NoCapacity, NotFound
from sandkeep.drivers.disk import mounts
from sandkeep.drivers.disk.btrfs import history, ioctl
from sandkeep.drivers.disk.btrfs.groups import Groups, recorded
from sandkeep.drivers.disk.btrfs.pool import Pool, PoolSettings
from sandkeep.drivers.disk.btrfs.send import Sends
from sandkeep.drivers.disk.layout import (
    DISK,
    GENERATIONS,
    PARTIAL,
    Layout,
    Survey,
    mark_of,
    note_mark,
    share_files,
    survey,
)
from sandkeep.drivers.disk.tree import tree_size

T = TypeVar("T")

_SWEEP_EVERY = 64
"""Deletions between two sweeps of quota groups that nothing needs any more."""


class BtrfsDisks:
    capabilities = DiskCapabilities(
        kind="btrfs",
        hard_limit=True,
        copy_on_write=True,
        atomic=True,
        notes=(
            "A full disk answers EDQUOT, and df inside shows the whole pool.",
            "What a template made from a sandbox keeps stays charged to that sandbox while it lives.",
        ),
    )

    def __init__(self, settings: PoolSettings) -> None:
        self.pool = Pool(settings)
        self._layout = Layout(self.pool.folder)
        self._groups = Groups(self.pool.folder)
        self._sends = Sends()
        self._deletions = 0
        self._measuring = anyio.Lock()

    async def open(self) -> None:
        await self.pool.open()
        await self._run(self._layout.make)
        await self._run(self._tidy_groups)

    async def close(self) -> bool:
        """Unmount the pool; see Pool.close. Only for tests and purge: daemons leave it mounted."""
        return await self.pool.close()

    async def space(self) -> PoolSpace:
        return await self._run(self._space)

    async def contents(self) -> PoolContents:
        return (await self._run(self._survey)).contents

    async def discard_partial(self) -> list[str]:
        return await self._run(self._discard_partial)

    async def facts(self, sandbox_id: str) -> DiskFacts:
        return await self._run(self._layout.facts, sandbox_id)

    async def sync(self) -> None:
        await self._run(ioctl.sync, self.pool.folder)

    # templates

    async def begin_template(self, template_id: str) -> Path:
        return await self._run(self._begin_template, template_id)

    async def finish_template(self, template_id: str) -> int:
        return await self._run(self._finish_template, template_id)

    async def template_from_disk(self, template_id: str, sandbox_id: str, generation_id: str | None = None) -> int:
        return await self._run(self._template_from_disk, template_id, sandbox_id, generation_id)

    async def delete_template(self, template_id: str) -> None:
        await self._run(self._delete_template, template_id)

    # disks and generations

    async def create(self, sandbox_id: str, template_id: str, limit: int) -> Path:
        return await self._run(self._create, sandbox_id, template_id, limit)

    async def fork(self, sandbox_id: str, source_id: str, generation_id: str, limit: int) -> Path:
        return await self._run(self._fork, sandbox_id, source_id, generation_id, limit)

    async def begin_disk(self, sandbox_id: str, limit: int) -> Path:
        return await self._run(self._begin_disk, sandbox_id, limit)

    async def finish_disk(self, sandbox_id: str) -> Path:
        return await self._run(self._layout.finish_disk, sandbox_id)

    async def begin_generation(self, sandbox_id: str, generation_id: str, limit: int) -> Path:
        return await self._run(self._begin_generation, sandbox_id, generation_id, limit)

    async def finish_generation(self, sandbox_id: str, generation_id: str) -> None:
        await self._run(self._finish_generation, sandbox_id, generation_id)

    async def drop_disk(self, sandbox_id: str) -> None:
        await self._run(self._drop_disk, sandbox_id)

    def path(self, sandbox_id: str) -> Path:
        return self._layout.disk(sandbox_id)

    async def set_limit(self, sandbox_id: str, limit: int) -> None:
        await self._run(self._set_limit, sandbox_id, limit)

    async def used(self, sandbox_id: str) -> int:
        return await self._run(self._used, sandbox_id)

    async def delete(self, sandbox_id: str) -> None:
        await self._run(self._delete, sandbox_id)

    async def snapshot(self, sandbox_id: str, generation_id: str) -> None:
        await self._run(self._snapshot, sandbox_id, generation_id)

    async def restore(self, sandbox_id: str, generation_id: str) -> Path:
        return await self._run(self._restore, sandbox_id, generation_id)

    async def check_generation(self, sandbox_id: str, generation_id: str) -> None:
        await self._run(self._layout.check_generation, sandbox_id, generation_id)

    async def copy_generation(
        self, sandbox_id: str, generation_id: str, source_id: str, source_generation_id: str
    ) -> None:
        await self._run(self._copy_generation, sandbox_id, generation_id, source_id, source_generation_id)

    async def came_from(self, sandbox_id: str, owner_id: str, generation_id: str) -> bool | None:
        return await self._run(self._came_from, sandbox_id, owner_id, generation_id)

    async def drop_generation(self, sandbox_id: str, generation_id: str) -> None:
        await self._run(self._drop_generation, sandbox_id, generation_id)

    async def changed(self, sandbox_id: str, generation_id: str) -> bool:
        return await self._run(self._changed, sandbox_id, generation_id)

    async def measure(self, sandbox_id: str, generations: Sequence[tuple[str, str | None]]) -> GenerationSizes:
        async with self._measuring:
            measuring = history.Measuring(await self._run(self._moments, sandbox_id, generations))
            steps = measuring.steps()
            while True:
                began = time.monotonic()
                if await self._run(self._measure_step, sandbox_id, steps):
                    return measuring.result
                await anyio.sleep(time.monotonic() - began)  # half of the time is everybody else's

    def generation_path(self, sandbox_id: str, generation_id: str) -> Path:
        return self._layout.generation_disk(sandbox_id, generation_id)

    async def touched(self, before: tuple[str, str], after: tuple[str, str]) -> Touched | None:
        return await self._run(self._touched, before, after)

    async def mark(self, sandbox_id: str, name: str) -> int | None:
        return await self._run(self._mark, sandbox_id, name)

    async def inodes_since(self, sandbox_id: str, name: str, moment: int) -> frozenset[int] | None:
        return await self._run(self._inodes_since, sandbox_id, name, moment)

    def memory_folder(self, sandbox_id: str, generation_id: str) -> Path:
        return self._layout.memory(sandbox_id, generation_id)

    async def make_memory_folder(self, sandbox_id: str, generation_id: str) -> Path:
        return await self._run(self._make_memory_folder, sandbox_id, generation_id)

    # what runs in the worker threads

    async def _run(self, call: Callable[..., T], *args: object) -> T:
        return await anyio.to_thread.run_sync(self._guarded, call, *args)

    def _guarded(self, call: Callable[..., T], *args: object) -> T:
        try:
            return call(*args)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise self._full() from error
            what = call.__name__.strip("_").replace("_", " ")
            raise Internal(f"The pool failed at {what}: {error.strerror or error}", errno=error.errno or 0) from error

    def _space(self) -> PoolSpace:
        found = os.statvfs(self.pool.folder)
        return PoolSpace(
            total=found.f_blocks * found.f_frsize,
            free=found.f_bavail * found.f_frsize,
            metadata_free=ioctl.metadata_free(self.pool.folder),
        )

    def _full(self) -> NoCapacity:
        free = self._space().free
        return NoCapacity("The pool is full", hint="Delete sandboxes or snapshots, or grow the pool.", pool_free=free)

    def _need_room(self) -> None:
        if self._space().free < self.pool.settings.reserve:
            raise self._full()

    def _survey(self) -> Survey:
        return survey(self._layout)

    def _discard_partial(self) -> list[str]:
        partials = self._survey().partials
        for path in partials:
            self._remove(path)
        self._sweep(True)
        return [str(path.relative_to(self.pool.folder)) for path in partials]

    def _tidy_groups(self) -> None:
        self._groups.reapply(self._survey().sandboxes)
        self._sweep(False)

    def _sweep(self, alone: bool) -> None:
        self._groups.sweep(self._survey().sandboxes, alone=alone)

    def _deleted(self) -> None:
        self._deletions += 1
        if self._deletions % _SWEEP_EVERY == 0:
            self._sweep(False)

    def _begin_template(self, template_id: str) -> Path:
        fresh = self._layout.unsealed(template_id)
        if self._layout.template(template_id).exists():
            return self._layout.template(template_id)
        self._need_room()
        self._destroy(fresh)  # what an earlier try left
        ioctl.create_subvolume(fresh.parent, fresh.name)
        fresh.chmod(0o755)
        return fresh

    def _finish_template(self, template_id: str) -> int:
        fresh, sealed = self._layout.unsealed(template_id), self._layout.template(template_id)
        if not sealed.exists():
            with _source(f"template {template_id}"):
                ioctl.set_readonly(fresh, True)
            fresh.rename(sealed)  # in one folder: a read-only folder cannot change its parent
            ioctl.sync(self.pool.folder)
        return tree_size(sealed)

    def _template_from_disk(self, template_id: str, sandbox_id: str, generation_id: str | None) -> int:
        sealed, source = self._layout.template(template_id), self._layout.source(sandbox_id, generation_id)
        if not sealed.exists():
            self._need_room()
            with _source(f"disk or generation of {sandbox_id}"):
                ioctl.snapshot(source, sealed.parent, sealed.name, group=None, readonly=True)
            ioctl.sync(self.pool.folder)
        return tree_size(sealed)

    def _delete_template(self, template_id: str) -> None:
        self._destroy(self._layout.unsealed(template_id))
        self._destroy(self._layout.template(template_id))
        self._deleted()

    def _create(self, sandbox_id: str, template_id: str, limit: int) -> Path:
        return self._clone(sandbox_id, self._layout.template(template_id), template_id, limit)

    def _fork(self, sandbox_id: str, source_id: str, generation_id: str, limit: int) -> Path:
        origin = self._layout.facts(source_id).template
        return self._clone(sandbox_id, self._layout.generation_disk(source_id, generation_id), origin, limit)

    def _clone(self, sandbox_id: str, source: Path, origin: str | None, limit: int) -> Path:
        home, disk = self._layout.sandbox(sandbox_id), self._layout.disk(sandbox_id)
        if disk.exists():
            return disk
        _check_limit(limit)
        if not source.exists():
            raise NotFound(f"There is no {source.relative_to(self.pool.folder)} in the pool")
        self._need_room()
        home.mkdir(mode=0o700, exist_ok=True)
        if origin:
            self._layout.note_origin(sandbox_id, origin)
        with self._groups.joined(home, limit) as group:
            ioctl.snapshot(source, home, DISK, group=group, readonly=False)
        return disk

    def _begin_disk(self, sandbox_id: str, limit: int) -> Path:
        home = self._layout.sandbox(sandbox_id)
        self._layout.check_no_disk(sandbox_id)
        _check_limit(limit)
        self._need_room()
        home.mkdir(mode=0o700, exist_ok=True)
        return self._begun(home, home, limit)

    def _begin_generation(self, sandbox_id: str, generation_id: str, limit: int) -> Path:
        home, folder = self._layout.sandbox(sandbox_id), self._layout.generation(sandbox_id, generation_id)
        self._layout.check_no_generation(sandbox_id, generation_id)
        _check_limit(limit)
        self._need_room()
        home.mkdir(mode=0o700, exist_ok=True)
        self._layout.make_generation(sandbox_id, generation_id)
        return self._begun(home, folder, limit)

    def _begun(self, home: Path, folder: Path, limit: int) -> Path:
        """An empty disk in `folder` that is not finished; home: of the sandbox that it counts for."""
        fresh = folder / (DISK + PARTIAL)
        self._destroy(fresh)
        with self._groups.joined(home, limit) as group:
            ioctl.create_subvolume(folder, fresh.name, group)
        fresh.chmod(0o755)
        return fresh

    def _finish_generation(self, sandbox_id: str, generation_id: str) -> None:
        disk = self._layout.generation_disk(sandbox_id, generation_id)
        if not disk.exists():
            fresh = self._layout.begun_generation(sandbox_id, generation_id)
            ioctl.set_readonly(fresh, True)
            fresh.rename(disk)  # in one folder: a read-only folder cannot change its parent

    def _drop_disk(self, sandbox_id: str) -> None:
        home = self._layout.sandbox(sandbox_id)
        if not home.exists():
            return
        if self._layout.has_generations(sandbox_id):
            self._destroy(home / (DISK + PARTIAL))
            self._destroy(home / DISK)
        else:
            self._remove(home)
        self._deleted()

    def _set_limit(self, sandbox_id: str, limit: int) -> None:
        _check_limit(limit)
        with _source(f"disk of {sandbox_id}"):
            self._groups.limit(self._layout.sandbox(sandbox_id), limit)

    def _used(self, sandbox_id: str) -> int:
        home = self._layout.sandbox(sandbox_id)
        if not home.exists():
            raise NotFound(f"There is no disk of {sandbox_id} in the pool")
        return self._groups.usage(home)

    def _delete(self, sandbox_id: str) -> None:
        """Generations first: a crash in between leaves a whole sandbox with fewer of them, for the next delete."""
        if self._layout.sandbox(sandbox_id).exists():
            self._remove(self._layout.sandbox(sandbox_id))
            self._deleted()

    def _snapshot(self, sandbox_id: str, generation_id: str) -> None:
        folder = self._layout.generation(sandbox_id, generation_id)
        if (folder / DISK).exists():
            return
        disk, home = self._layout.disk(sandbox_id), self._layout.sandbox(sandbox_id)
        if not disk.exists():
            raise NotFound(f"There is no disk of {sandbox_id} in the pool")
        self._need_room()
        self._layout.make_generation(sandbox_id, generation_id)
        ioctl.snapshot(disk, folder, DISK, group=recorded(home), readonly=True)

    def _restore(self, sandbox_id: str, generation_id: str) -> Path:
        """The fresh clone and the disk change names at once. A crash leaves the one or the other beside it."""
        home, disk = self._layout.sandbox(sandbox_id), self._layout.disk(sandbox_id)
        source = self._layout.generation_disk(sandbox_id, generation_id)
        fresh = home / (DISK + PARTIAL)
        self._destroy(fresh)
        with _source(f"generation {generation_id} of {sandbox_id}"):
            ioctl.snapshot(source, home, fresh.name, group=recorded(home), readonly=False)
        if disk.exists():
            mounts.exchange(fresh, disk)
            self._destroy(fresh)
        else:
            fresh.rename(disk)
        self._deleted()
        return disk

    def _copy_generation(self, sandbox_id: str, generation_id: str, source_id: str, source_generation_id: str) -> None:
        """The disk last: with it the generation is there."""
        folder, home = self._layout.generation(sandbox_id, generation_id), self._layout.sandbox(sandbox_id)
        if (folder / DISK).exists():
            return
        self._need_room()
        source = self._layout.generation_disk(source_id, source_generation_id)
        with _source(f"generation {source_generation_id} of {source_id}"):
            memory = self._layout.make_generation(sandbox_id, generation_id)
            share_files(self._layout.memory(source_id, source_generation_id), memory)
            ioctl.snapshot(source, folder, DISK, group=recorded(home), readonly=True)

    def _came_from(self, sandbox_id: str, owner_id: str, generation_id: str) -> bool:
        source = self._layout.generation_disk(owner_id, generation_id)
        with _source(f"disk of {sandbox_id}, or generation {generation_id}"):
            return ioctl.uuids(self._layout.disk(sandbox_id))[1] == ioctl.uuids(source)[0]

    def _drop_generation(self, sandbox_id: str, generation_id: str) -> None:
        folder = self._layout.generation(sandbox_id, generation_id)
        if folder.exists():
            self._remove(folder)
            self._deleted()

    def _changed(self, sandbox_id: str, generation_id: str) -> bool:
        with _source(f"generation {generation_id} of {sandbox_id}"):
            ioctl.sync(self.pool.folder)  # what is not written yet is in no tree
            return history.changed(
                self._layout.disk(sandbox_id), self._layout.generation_disk(sandbox_id, generation_id)
            )

    def _moments(self, sandbox_id: str, generations: Sequence[tuple[str, str | None]]) -> list[history.Moment]:
        ioctl.sync(self.pool.folder)
        origin = self._layout.facts(sandbox_id).template
        template = self._layout.template(origin) if origin else None
        return [
            history.moment(
                generation,
                self._layout.generation_disk(sandbox_id, generation),
                self._layout.generation_disk(sandbox_id, parent) if parent else template,
            )
            for generation, parent in generations
        ]

    def _measure_step(self, sandbox_id: str, steps: Iterator[None]) -> bool:
        """Whether that was the last one."""
        with _source(f"generation of {sandbox_id}"):
            for _ in steps:
                return False
        return True

    def _touched(self, before: tuple[str, str], after: tuple[str, str]) -> Touched | None:
        """None for two that come from different templates: the file system would compare all of both, by inode number."""
        for one in (before, after):
            self._layout.check_generation(*one)
        origins = {self._layout.facts(sandbox_id).template for sandbox_id, _ in (before, after)}
        if before[0] != after[0] and (len(origins) > 1 or None in origins):
            return None
        return self._sends.touched(self._layout.generation_disk(*before), self._layout.generation_disk(*after))

    def _mark(self, sandbox_id: str, name: str) -> int | None:
        """None when its limit leaves no room for the note."""
        disk = self._layout.disk(sandbox_id)
        with _source(f"disk of {sandbox_id}"):
            if not note_mark(disk, name):
                return None
            ioctl.sync(self.pool.folder)  # what is changed from now on is changed in a later transaction
            return ioctl.root_times(disk).generation

    def _inodes_since(self, sandbox_id: str, name: str, moment: int) -> frozenset[int] | None:
        disk = self._layout.disk(sandbox_id)
        with _source(f"disk of {sandbox_id}"):
            if mark_of(disk) != name:
                return None
            ioctl.sync(self.pool.folder)  # what is not written yet is in no tree
            return history.inodes_since(disk, moment)

    def _make_memory_folder(self, sandbox_id: str, generation_id: str) -> Path:
        with _source(f"disk of {sandbox_id}"):
            return self._layout.make_generation(sandbox_id, generation_id)

    # removing: works at a full quota and in a full pool

    def _remove(self, path: Path) -> None:
        """A sandbox's folder, a generation's, or a partial subvolume."""
        if _is_subvolume(path):
            self._destroy(path)
            return
        if (path / GENERATIONS).is_dir():
            for generation in (path / GENERATIONS).iterdir():
                self._remove(generation)
        self._destroy(path / (DISK + PARTIAL))
        self._destroy(path / DISK)
        shutil.rmtree(path)  # memory files and folders of ours; guests never reach them

    def _destroy(self, path: Path) -> None:
        """A subvolume with all that a guest nested in it. Gone is fine."""
        if not _is_subvolume(path):
            return
        with self._sends.given_up(path):
            subvolume = ioctl.subvolume_id(path)
            nested = _depth_first(path, subvolume)
            if nested:
                if ioctl.is_readonly(path):
                    ioctl.set_readonly(path, False)
                with self._groups.lifted(path.parent):
                    for one in nested:
                        ioctl.destroy_subvolume(path.parent, one)
            ioctl.destroy_subvolume(path.parent, subvolume)


def _check_limit(limit: int) -> None:
    if not 0 < limit < 2**63:
        raise InvalidArgument("A disk's limit is a number of bytes above zero")


@contextlib.contextmanager
def _source(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"There is no {what} in the pool") from error


def _is_subvolume(path: Path) -> bool:
    try:
        return os.lstat(path).st_ino == ioctl.FIRST_FREE_OBJECTID
    except FileNotFoundError:
        return False


def _depth_first(where: Path, subvolume: int) -> list[int]:
    """All subvolumes below this one, the deepest first. By the file system's own table: no folder is walked, so nothing
    that a guest made can lead astray."""
    found, waiting = list[int](), [subvolume]
    while waiting:
        below = ioctl.nested_subvolumes(where, waiting.pop())
        found += below
        waiting += below
    return found[::-1]
