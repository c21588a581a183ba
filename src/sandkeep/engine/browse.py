"""Looking at disks from outside, without a machine: folders, files, trees, and what differs between two points in time.

What is looked at was shaped by a guest: nothing is followed out of its disk, and only files and folders are opened (lib/beneath).
For a comparison with a disk as it is now this moment is kept for so long (engine/passing).
"""

import errno
import heapq
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

from sandkeep.contracts.clock import Clock
from sandkeep.domain.browse import Difference, FileAt, Point, name_of, raw
from sandkeep.domain.errors import DeadlineExceeded, Internal, InvalidArgument, NotFound, SandkeepError
from sandkeep.domain.sandbox import Phase
from sandkeep.engine import archiving, machine, passing, snapshots
from sandkeep.engine.difference import Comparison, file_at
from sandkeep.engine.lanes import Lanes
from sandkeep.engine.packages import Packages
from sandkeep.engine.parts import Parts
from sandkeep.engine.readings import Chunks, Readings, identity
from sandkeep.lib import beneath
from sandkeep.lib.tree_tar import CHUNK, DEEPEST, TooDeepError, TreeTar

MOST_LISTED = 1000
MOST_SHOWN = 100_000
_LOOK_DEADLINE = 30.0
_DIFF_DEADLINE = 300.0
_LANE_DEADLINE = 60.0
_COMPARED_AT_ONCE = 4
"""Each takes a thread or two, and memory by what differs."""
T = TypeVar("T")


class Browser:
    def __init__(self, parts: Parts, lanes: Lanes) -> None:
        self._parts = parts
        self._lanes = lanes
        self.readings = Readings(parts.clock)
        self._comparing = anyio.Semaphore(_COMPARED_AT_ONCE)

    async def list_folder(self, point: Point, path: str, after: str, limit: int) -> list[FileAt]:
        root, asked, past = self._root(point), name_of(path), name_of(after)
        pause = _until(self._parts.clock, _LOOK_DEADLINE)
        return await self._look(root, lambda: _listing(root, asked, past, min(limit, MOST_LISTED), pause))

    async def stat_path(self, point: Point, path: str, follow: bool) -> FileAt:
        root, asked = self._root(point), name_of(path)
        return await self._look(root, lambda: _stat(root, asked, follow))

    def read_file(self, point: Point, path: str) -> AsyncGenerator[bytes, None]:
        root = self._root(point)
        return self._stream(root, lambda: _Content(root, name_of(path)))

    def read_tree(
        self, point: Point, path: str, name: str, follow: bool, exclude: tuple[str, ...]
    ) -> AsyncGenerator[bytes, None]:
        root = self._root(point)
        return self._stream(root, lambda: _tree(root, name_of(path), name_of(name), follow, exclude))

    def _root(self, point: Point) -> Path:
        """Raises NotFound; Conflict for what is archived."""
        if point.snapshot_id is not None:
            kept = snapshots.find_here(self._parts, point.sandbox_id, point.snapshot_id)
            return self._parts.disks.generation_path(point.sandbox_id, kept.generation.id)
        record = self._parts.records.sandboxes.get(point.sandbox_id)
        if record is None or record.phase is Phase.DELETED:
            raise NotFound(f"sandbox {point.sandbox_id} is not on this node")
        archiving.check_here(record, "browse")
        return self._parts.disks.path(point.sandbox_id)

    async def _look(self, root: Path, call: Callable[[], T]) -> T:
        try:
            return await run_sync(call, limiter=self.readings.threads)
        except OSError as error:
            raise _said(error, root) from error

    async def _stream(self, root: Path, begin: Callable[[], Chunks]) -> AsyncGenerator[bytes, None]:
        chunks = await self._look(root, begin)
        async with aclosing(self.readings.stream(root, chunks)) as stream:
            async for chunk in stream:
                yield chunk

    # what differs

    async def diff(self, before: Point, after: Point, limit: int) -> Difference:
        packages = Packages()
        async with self._comparing, AsyncExitStack() as moments:
            old, new = [await moments.enter_async_context(self._moment(point)) for point in (before, after)]
            touched = None
            if old.generation and new.generation:
                touched = await self._parts.disks.touched(
                    (before.sandbox_id, old.generation), (after.sandbox_id, new.generation)
                )
            pause = _until(self._parts.clock, _DIFF_DEADLINE)
            comparison = Comparison(old.root, new.root, min(limit, MOST_SHOWN), pause, packages.seen)

            def compare() -> Difference:
                comparison.run(touched)
                return Difference(
                    comparison.rows(),
                    packages.changes(old.root, new.root),
                    comparison.counts,
                    tuple(raw(path) for path in comparison.left_out),
                    fast=touched is not None,
                )

            found = await self._look(old.root, compare)
            for moment in (old, new):
                if await run_sync(identity, moment.root) != moment.identity:
                    raise NotFound(
                        "what is compared was deleted or replaced meanwhile", hint="compare what is there now"
                    )
            return found

    @asynccontextmanager
    async def _moment(self, point: Point) -> AsyncIterator["_Moment"]:
        if point.snapshot_id is not None:
            kept = snapshots.find_here(self._parts, point.sandbox_id, point.snapshot_id)
            yield _Moment(self._root(point), kept.generation.id)
        elif self._parts.disks.capabilities.atomic:
            async with self._kept_now(point.sandbox_id) as generation:
                yield _Moment(self._parts.disks.generation_path(point.sandbox_id, generation), generation)
        else:  # a copy would cost more than all the rest
            yield _Moment(self._root(point), "")

    @asynccontextmanager
    async def _kept_now(self, sandbox_id: str) -> AsyncIterator[str]:
        """A generation that lives as long as the block."""
        self._root(Point(sandbox_id))

        async def take(generation: str) -> None:
            self._root(Point(sandbox_id))  # it may have been deleted while another operation was waited for
            record = self._parts.records.sandboxes[sandbox_id]
            if record.phase is Phase.RUNNING:
                await machine.flush(self._parts, record)
            await self._parts.disks.snapshot(sandbox_id, generation)

        async with passing.kept(self._parts, self._lanes, sandbox_id, passing.DIFF, _LANE_DEADLINE, take) as (kept, _):
            yield kept


class _Moment:
    def __init__(self, root: Path, generation: str) -> None:
        self.root, self.generation, self.identity = root, generation, identity(root)


# in worker threads


def _until(clock: Clock, deadline: float) -> Callable[[], None]:
    end = clock.monotonic() + deadline

    def pause() -> None:
        if clock.monotonic() > end:
            raise DeadlineExceeded(f"it took longer than {deadline:g} s", hint="look at a smaller part")

    return pause


def _listing(root: Path, path: bytes, past: bytes, limit: int, pause: Callable[[], None]) -> list[FileAt]:
    """The next by name, in memory for them alone, however large the folder is."""

    def names(folder: int) -> Iterator[bytes]:
        for number, name in enumerate(beneath.names(folder)):
            if not number % 1024:
                pause()
            if name > past:
                yield name

    folder = _opened(root, path, stat.S_ISDIR, "folder")
    try:
        found = []
        for name in heapq.nsmallest(limit, names(folder)):
            with suppress(FileNotFoundError):
                found.append(_described(folder, name))
        return found
    finally:
        os.close(folder)


def _described(folder: int, name: bytes) -> FileAt:
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    return file_at(name, found, os.readlink(name, dir_fd=folder) if stat.S_ISLNK(found.st_mode) else None)


def _stat(root: Path, path: bytes, follow: bool) -> FileAt:
    with beneath.root(root) as base:
        handle = beneath.handle(base, path, follow=follow)
    try:
        found = os.fstat(handle)
        target = os.readlink(b"", dir_fd=handle) if stat.S_ISLNK(found.st_mode) else None
        return file_at(path.rstrip(b"/").rpartition(b"/")[2], found, target)
    finally:
        os.close(handle)


class _Content(Iterator[bytes]):
    def __init__(self, root: Path, path: bytes) -> None:
        self._file = _opened(root, path, stat.S_ISREG, "file")

    def __next__(self) -> bytes:
        if block := os.read(self._file, CHUNK):
            return block
        raise StopIteration

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class _Tree(TreeTar):
    def __next__(self) -> bytes:
        try:
            return super().__next__()
        except TooDeepError as error:
            raise InvalidArgument(
                f"a folder in it is below more than {DEEPEST} others", hint="take a part of it", field="path"
            ) from error


def _tree(root: Path, path: bytes, name: bytes, follow: bool, exclude: tuple[str, ...]) -> TreeTar:
    with beneath.root(root) as base:
        return _Tree(base, path, name, follow=follow, whole=not follow, exclude=exclude)


def _opened(root: Path, path: bytes, wanted: Callable[[int], bool], called: str) -> int:
    """A descriptor to read from. Raises InvalidArgument for what is something else, without having opened it."""
    with beneath.root(root) as base:
        handle = beneath.handle(base, path, follow=True)
    try:
        if not wanted(os.fstat(handle).st_mode):
            raise InvalidArgument(f"{_shown(path)} is no {called}", field="path")
        return beneath.opened(handle)
    finally:
        os.close(handle)


def _said(error: OSError, root: Path) -> SandkeepError:
    path = _shown(error.filename if isinstance(error.filename, bytes) else b"")
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and identity(root) is None:
        return NotFound("what is looked at was deleted meanwhile", hint="look at what is there now")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"there is no {path}", field="path")
    if error.errno == errno.ELOOP:
        return InvalidArgument(f"{path} leads through too many links, or in a circle", field="path")
    if error.errno in (errno.EXDEV, errno.ENAMETOOLONG, errno.EINVAL):
        return InvalidArgument(f"{path} cannot be looked at: {error.strerror}", field="path")
    return Internal(f"the disk cannot be read: {error.strerror or error}")


def _shown(path: bytes) -> str:
    text = path.decode("utf-8", "replace")
    return repr(text if len(text) <= 200 else f"{text[:200]}...") if text else "such path"
