"""What differs between two folders that a guest has shaped: file by file. Used by engine/browse, in a worker thread.

Where the disk driver knows which paths were touched only these are looked at; else both trees are walked. No link is
followed, nothing but files and folders is opened, and memory and depth are bounded.
"""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sandkeep.contracts.disks import Touched
from sandkeep.domain.browse import Aspect, ChangeKind, FileAt, FileChange, FileType, raw
from sandkeep.domain.errors import TooLarge
from sandkeep.lib import beneath

MOST_CHANGES = 500_000
MOST_NAMES = 2_000_000
DEEPEST = 256
"""Levels: each is an open folder of either side."""
_NAMED_LEFT_OUT = 100
_BLOCK = 1 << 20
_OWNED = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | 0o777


@dataclass
class Comparison:
    """Made with the roots of both; `run` it, then read what it found. `pause`: called now and then, raises when it is enough.
    `seen`: told each path that differs."""

    before: Path
    after: Path
    limit: int
    pause: Callable[[], None]
    seen: Callable[[bytes], None]
    counts: dict[ChangeKind, int] = field(default_factory=lambda: dict.fromkeys(ChangeKind, 0))
    left_out: list[bytes] = field(default_factory=list)
    _rows: dict[bytes, FileChange] = field(default_factory=dict)
    _known: set[bytes] = field(default_factory=set)
    _touched: Touched | None = None
    _shared: set[int] = field(default_factory=set)
    """Files of the later tree that differ at one of their names, and have several."""

    def run(self, touched: Touched | None) -> None:
        """Raises OSError when a root is gone, TooLarge, and whatever `pause` raises."""
        self._touched = touched
        with beneath.root(self.before) as before, beneath.root(self.after) as after:
            if touched is None:
                self._whole(b"", before, after)
                return
            for path in sorted(touched.paths):
                self.pause()
                whole = path in touched.moved
                if whole:
                    self._whole(path, before, after)
                else:
                    self._one(path, _at(before, path), _at(after, path))
            for inode in sorted(self._shared):
                for path in touched.names(inode):
                    self.pause()
                    self._one(path, _at(before, path), _at(after, path), sure=False)

    def rows(self) -> tuple[FileChange, ...]:
        """The first of them, by path."""
        self._cut()
        return tuple(self._rows[path] for path in sorted(self._rows))

    def _cut(self) -> None:
        for path in sorted(self._rows)[self.limit :]:
            del self._rows[path]

    # one path

    def _one(self, path: bytes, before: "_Side | None", after: "_Side | None", *, sure: bool = True) -> None:
        """`sure`: the driver's word on what was written counts for this very path."""
        try:
            if path not in self._known and (what := self._what(path, before, after, sure)) is not None:
                self._note(path, before, after, what)
        finally:
            for side in (before, after):
                if side is not None:
                    side.close()

    def _note(self, path: bytes, before: "_Side | None", after: "_Side | None", what: tuple[Aspect, ...]) -> None:
        self._known.add(path)
        if len(self._known) > MOST_CHANGES:
            raise TooLarge(
                f"there are more than {MOST_CHANGES} changes between the two", hint="compare two that are nearer"
            )
        if after is not None and after.found.st_nlink > 1 and not stat.S_ISDIR(after.found.st_mode):
            self._shared.add(after.found.st_ino)
        name = path.rpartition(b"/")[2]
        kind = ChangeKind.ADDED if before is None else ChangeKind.REMOVED if after is None else ChangeKind.CHANGED
        self.counts[kind] += 1
        self.seen(path)
        self._rows[path] = FileChange(raw(path), kind, _described(before, name), _described(after, name), what)
        if len(self._rows) > 2 * self.limit + 1000:
            self._cut()

    def _what(
        self, path: bytes, before: "_Side | None", after: "_Side | None", sure: bool
    ) -> tuple[Aspect, ...] | None:
        """None: it does not differ."""
        if before is None or after is None:
            return () if before is not after else None
        old, new = before.found, after.found
        if stat.S_IFMT(old.st_mode) != stat.S_IFMT(new.st_mode):
            return (Aspect.TYPE,)
        what = []
        if _OWNED & old.st_mode != _OWNED & new.st_mode and not stat.S_ISLNK(old.st_mode):
            what.append(Aspect.MODE)
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            what.append(Aspect.OWNER)
        touched = self._touched if sure and old.st_ino == new.st_ino else None
        if stat.S_ISREG(old.st_mode):
            written = None if touched is None else path in touched.written
            if old.st_size != new.st_size or written:
                what.append(Aspect.CONTENT)
            elif old.st_mtime_ns != new.st_mtime_ns:
                same = written is False or self._same_bytes(before, after)
                what.append(Aspect.TIME if same else Aspect.CONTENT)
        elif stat.S_ISLNK(old.st_mode):
            if before.target() != after.target():
                what.append(Aspect.CONTENT)
        elif not stat.S_ISDIR(old.st_mode) and old.st_rdev != new.st_rdev:
            what.append(Aspect.CONTENT)
        if touched is not None and path in touched.noted:
            what.append(Aspect.ATTRIBUTES)
        return tuple(what) or None

    def _same_bytes(self, before: "_Side", after: "_Side") -> bool:
        with open(before.reader(), "rb", buffering=0) as one, open(after.reader(), "rb", buffering=0) as other:
            while True:
                self.pause()
                block = one.read(_BLOCK)
                if block != other.read(_BLOCK):
                    return False
                if not block:
                    return True

    # whole trees

    def _whole(self, path: bytes, before_root: int, after_root: int) -> None:
        """What is at this path in either, with all that is below it."""
        stack: list[_Level] = []
        try:
            self._enter(path, _at(before_root, path), _at(after_root, path), stack)
            while stack:
                level = stack[-1]
                name = next(level.names, None)
                if name is None:
                    stack.pop().close()
                    continue
                self.pause()
                below = level.path + b"/" + name if level.path else name
                self._enter(below, _named(level.before, name), _named(level.after, name), stack)
        finally:
            for level in stack:
                level.close()

    def _enter(self, path: bytes, before: "_Side | None", after: "_Side | None", stack: list["_Level"]) -> None:
        folders = [side for side in (before, after) if side is not None and stat.S_ISDIR(side.found.st_mode)]
        try:
            if folders and len(stack) >= DEEPEST:
                if len(self.left_out) < _NAMED_LEFT_OUT:
                    self.left_out.append(path)
            elif folders:
                stack.append(_Level(path, before, after))
        finally:
            self._one(path, before, after, sure=False)


class _Side:
    """What one of the two has at a path: an O_PATH descriptor, or a name in an open folder."""

    def __init__(self, folder: int, name: bytes | None) -> None:
        self._folder, self._name = folder, name
        self.found = os.fstat(folder) if name is None else os.stat(name, dir_fd=folder, follow_symlinks=False)

    def close(self) -> None:
        if self._name is None and self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def reader(self) -> int:
        return beneath.opened(self._folder) if self._name is None else beneath.open_at(self._folder, self._name)

    def target(self) -> bytes:
        return os.readlink(self._name or b"", dir_fd=self._folder)

    def described(self, name: bytes) -> FileAt:
        target = self.target() if stat.S_ISLNK(self.found.st_mode) else None
        return file_at(name, self.found, target)


class _Level:
    """A folder in either tree, or in both, while what is in it is compared."""

    def __init__(self, path: bytes, before: _Side | None, after: _Side | None) -> None:
        self.path = path
        self.before, self.after = _folder(before), -1
        try:
            self.after = _folder(after)
            found = {name for fd in (self.before, self.after) if fd >= 0 for name in _bounded(beneath.names(fd))}
        except BaseException:
            self.close()
            raise
        self.names = iter(sorted(found))

    def close(self) -> None:
        for fd in (self.before, self.after):
            if fd >= 0:
                os.close(fd)
        self.before = self.after = -1


def _described(side: _Side | None, name: bytes) -> FileAt | None:
    return None if side is None else side.described(name)


def _folder(side: _Side | None) -> int:
    return side.reader() if side is not None and stat.S_ISDIR(side.found.st_mode) else -1


def _bounded(names: Iterator[bytes]) -> Iterator[bytes]:
    for number, name in enumerate(names):
        if number >= MOST_NAMES:
            raise TooLarge(f"a folder has more than {MOST_NAMES} names")
        yield name


def _at(root: int, path: bytes) -> _Side | None:
    try:
        fd = beneath.exact(root, path)
    except OSError:  # not there, or not by this path
        return None
    return _Side(fd, None)


def _named(folder: int, name: bytes) -> _Side | None:
    if folder < 0:
        return None
    try:
        return _Side(folder, name)
    except FileNotFoundError:
        return None


def file_at(name: bytes, found: os.stat_result, target: bytes | None) -> FileAt:
    kinds = {stat.S_IFREG: FileType.FILE, stat.S_IFDIR: FileType.DIRECTORY, stat.S_IFLNK: FileType.SYMLINK}
    return FileAt(
        raw(name),
        kinds.get(stat.S_IFMT(found.st_mode), FileType.OTHER),
        found.st_size,
        stat.S_IMODE(found.st_mode),
        found.st_uid,
        found.st_gid,
        found.st_mtime,
        None if target is None else raw(target),
    )
