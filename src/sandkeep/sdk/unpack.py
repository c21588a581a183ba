"""Writes a tree that came from a sandbox under one local folder, and nowhere else. The sender is taken for hostile.

- Absolute names, `..` and names through a symlink end the copy with UnsafeArchive.
- Symlinks are made only when they cannot lead out: relative, `..` only in front, never above the target. Since every
  folder on the way is a real one and every link obeys this, no chain of links leads out either. Others are skipped.
- Hard links become copies of a file within the target; devices, FIFOs and sockets are skipped.
- Pieces that are all zero become holes.
- Set-user-id, set-group-id and sticky bits are dropped. What was skipped is counted and named.
"""

import contextlib
import os
import shutil
import stat
import tarfile
from pathlib import Path, PurePosixPath

from sandkeep.sdk.errors import InvalidArgument, UnsafeArchive
from sandkeep.sdk.results import TreeResult
from sandkeep.sdk.tarstream import Entry, TarStream

_NEW_FILE = (
    os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
)  # fmt: skip
_NAMED_SKIPS = 100
_NAME_LIMIT = 8192
_MAP_LIMIT = 8 << 20
_PATH_LIMIT = 3900
"""Letters: below PATH_MAX, with room for names that are not ASCII."""
_ZEROS = memoryview(bytes(1 << 20))
_WINDOWS = os.name == "nt"


class TreeWriter(TarStream):
    """Feed it the tar stream, then call finish(), or abort() when the stream broke."""

    def __init__(self, target: Path) -> None:
        super().__init__()
        try:
            target.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise InvalidArgument(f"{target} is not a folder") from error
        self._root = target.resolve()
        self._longest = _PATH_LIMIT - len(str(self._root))
        self._counts = {"files": 0, "folders": 0, "symlinks": 0, "bytes": 0, "skipped": 0}
        self._skipped: list[str] = []
        self._checked: tuple[str, ...] | None = None
        self._folders: list[tuple[tuple[str, ...], int, float]] = []
        self._file: _File | None = None

    def finish(self) -> TreeResult:
        """Call when the stream ended. Raises UnsafeArchive when the tar did not."""
        if not self.complete:
            self.abort()
            raise UnsafeArchive("the tree was cut off: the sandbox or the connection ended in the middle")
        self._leave(())
        counts = self._counts
        return TreeResult(
            counts["files"], counts["folders"], counts["symlinks"], counts["bytes"],
            tuple(self._skipped), counts["skipped"],
        )  # fmt: skip

    def abort(self) -> None:
        """Remove the file that was being written; what is whole stays."""
        if self._file is not None:
            self._file.discard()
            self._file = None
        self._leave(())

    def begin(self, entry: Entry) -> None:
        parts = _parts(entry.name)
        self._leave(parts)
        if self._longest < len(entry.name):
            self._skip(f"{entry.name[:200]}... has a path that is too long for this system")
        elif entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            self._file = _File(self._free(parts), entry)
        elif entry.type == tarfile.DIRTYPE:
            self._folder(parts, entry)
        elif entry.type == tarfile.SYMTYPE:
            self._symlink(parts, entry)
        elif entry.type == tarfile.LNKTYPE:
            self._copy(parts, entry)
        else:
            self._skip(f"{entry.name} is a device, a FIFO or a socket")

    def payload(self, data: memoryview) -> None:
        if self._file is not None:  # else it is one that is skipped
            self._counts["bytes"] += len(data)
            self._file.write(data)

    def end(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()
            self._counts["files"] += 1

    def left_out(self, told: str) -> None:
        self._skip(told[:_NAME_LIMIT])

    def _folder(self, parts: tuple[str, ...], entry: Entry) -> None:
        if not parts:
            return
        self._enter(parts[:-1])
        path = self._root.joinpath(*parts)
        with contextlib.suppress(FileExistsError):
            path.mkdir(0o700)
        self._enter(parts)
        # Its own mode may forbid writing: it is set when the last entry below it was written.
        self._folders.append((parts, entry.mode & 0o777, entry.mtime))
        self._counts["folders"] += 1

    def _symlink(self, parts: tuple[str, ...], entry: Entry) -> None:
        if not _stays_inside(entry.link, len(parts) - 1):
            self._skip(f"{entry.name} is a symlink that leads out, to {entry.link}")
            return
        path = self._free(parts)
        try:
            path.symlink_to(entry.link)
        except OSError as error:
            self._skip(f"{entry.name} is a symlink, which cannot be made here: {error.strerror}")
        else:
            self._counts["symlinks"] += 1

    def _copy(self, parts: tuple[str, ...], entry: Entry) -> None:
        source_parts = _parts(entry.link)
        self._enter(source_parts[:-1], make=False)
        source = self._root.joinpath(*source_parts)
        try:
            if not stat.S_ISREG(source.lstat().st_mode):
                raise UnsafeArchive(f"{entry.name!r} is a hard link to {entry.link!r}, which is not a file")
        except FileNotFoundError:
            self._skip(f"{entry.name} is a hard link to {entry.link}, which is not in the tree")
            return
        if source_parts == parts:
            return
        path = self._free(parts)
        with source.open("rb") as reader, open(os.open(path, _NEW_FILE, 0o600), "wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
        shutil.copystat(source, path)
        self._counts["files"] += 1

    def _free(self, parts: tuple[str, ...]) -> Path:
        """The path for a new file or link; what else is there is replaced, never written through."""
        if not parts:
            raise UnsafeArchive("the root of the tree is not a folder")
        self._enter(parts[:-1])
        path = self._root.joinpath(*parts)
        try:
            found = path.lstat()
        except FileNotFoundError:
            return path
        if stat.S_ISDIR(found.st_mode):
            raise InvalidArgument(f"{path} is a folder here and a file in the sandbox")
        path.unlink()
        return path

    def _enter(self, parts: tuple[str, ...], make: bool = True) -> None:
        """Every folder on the way is there, and a real one. Folders are never replaced, so the last check holds."""
        if parts == self._checked:
            return
        path = self._root
        for part in parts:
            path = path / part
            if make:
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
            try:
                real = stat.S_ISDIR(path.lstat().st_mode)
            except FileNotFoundError:
                real = False
                if not make:
                    return
            if not real:
                raise UnsafeArchive(f"{'/'.join(parts)!r} leads through {path}, which is not a folder")
        self._checked = parts

    def _leave(self, parts: tuple[str, ...]) -> None:
        """Set mode and time of the folders that hold nothing of what follows."""
        while self._folders and parts[: len(self._folders[-1][0])] != self._folders[-1][0]:
            done, mode, mtime = self._folders.pop()
            path = self._root.joinpath(*done)
            with contextlib.suppress(OSError, OverflowError, ValueError):
                if stat.S_ISDIR(path.lstat().st_mode):
                    os.utime(path, (mtime, mtime))
                    path.chmod(mode)

    def _skip(self, what_and_why: str) -> None:
        self._counts["skipped"] += 1
        if len(self._skipped) < _NAMED_SKIPS:
            self._skipped.append(what_and_why)


class _File:
    """A file being written; sparse ones are written around their holes."""

    def __init__(self, path: Path, entry: Entry) -> None:
        self._path, self._entry = path, entry
        self._fd = os.open(path, _NEW_FILE, 0o600)
        self._map = bytearray()
        self._segments: list[tuple[int, int]] | None = None if entry.sparse_size is not None else []
        self._left = entry.size

    def write(self, data: memoryview) -> None:
        self._left -= len(data)
        if self._entry.sparse_size is None:
            if data == _ZEROS[: len(data)]:
                os.lseek(self._fd, len(data), os.SEEK_CUR)
            else:
                _write_all(self._fd, data)
            return
        if self._segments is None:
            self._map += data
            data = self._read_map()
        while len(data):
            assert self._segments is not None
            if not self._segments:
                raise UnsafeArchive("a sparse file has more data than its map says")
            offset, length = self._segments[-1]
            part, data = data[:length], data[length:]
            os.lseek(self._fd, offset, os.SEEK_SET)
            _write_all(self._fd, part)
            self._segments[-1] = (offset + len(part), length - len(part))
            if length == len(part):
                self._segments.pop()

    def _read_map(self) -> memoryview:
        """PAX 1.0: lines `count`, then `offset` and `length` of each part, filled up to a block. Then the data."""
        nothing = memoryview(b"")
        lines = self._map.split(b"\n")
        if not lines[0].isdigit() or len(lines[0]) > 9:
            if len(lines) > 1 or len(lines[0]) > 9:
                raise UnsafeArchive("a sparse file without a map")
            return nothing
        count = int(lines[0]) if len(lines) > 1 else _MAP_LIMIT
        if len(lines) <= 2 * count + 1:
            if len(self._map) > _MAP_LIMIT or not self._left:
                raise UnsafeArchive("the map of a sparse file is cut or too long")
            return nothing
        numbers = lines[1 : 2 * count + 1]
        used = sum(len(line) + 1 for line in lines[: 2 * count + 1])
        used += -used % 512
        if len(self._map) < used:
            return nothing
        if not all(number.isdigit() and len(number) < 20 for number in numbers):
            raise UnsafeArchive("the map of a sparse file has something else than numbers")
        pairs = [(int(numbers[i]), int(numbers[i + 1])) for i in range(0, len(numbers), 2)]
        end = 0
        for offset, length in pairs:
            if offset < end or offset + length > (self._entry.sparse_size or 0):
                raise UnsafeArchive("the map of a sparse file is not in order")
            end = offset + length
        self._segments = [pair for pair in reversed(pairs) if pair[1]]
        rest = memoryview(bytes(self._map[used:]))
        self._map.clear()
        return rest

    def close(self) -> None:
        entry = self._entry
        try:
            if entry.sparse_size is not None and (self._segments is None or self._segments):
                raise UnsafeArchive(f"{entry.name!r} is a sparse file that misses data")
            os.ftruncate(self._fd, entry.size if entry.sparse_size is None else entry.sparse_size)
        except BaseException:
            self.discard()
            raise
        os.close(self._fd)
        with contextlib.suppress(OSError, OverflowError, ValueError):
            self._path.chmod(entry.mode & 0o777)
            os.utime(self._path, (entry.mtime, entry.mtime))

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)
        with contextlib.suppress(OSError):
            self._path.unlink()


def _write_all(fd: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(fd, data) :]


def _parts(name: str) -> tuple[str, ...]:
    """The components of a member's name. Raises UnsafeArchive for one that is not plainly below the target."""
    if name.startswith("/") or "\0" in name:
        raise UnsafeArchive(f"the tree has an absolute name: {name[:200]!r}")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise UnsafeArchive(f"the tree has a name with '..': {name[:200]!r}")
    if _WINDOWS and any(set(part) & set('\\:*?"<>|') for part in parts):
        raise UnsafeArchive(f"the tree has a name that cannot be written on this system: {name[:200]!r}")
    return parts


def _stays_inside(link: str, depth: int) -> bool:
    """A link made in a folder `depth` levels below the target cannot lead out of it. `..` after a name would depend on
    where that name leads, so it is refused."""
    if not link or "\0" in link or link.startswith("/") or (_WINDOWS and ("\\" in link or ":" in link)):
        return False
    parts = [part for part in PurePosixPath(link).parts if part != "."]
    above = 0
    while above < len(parts) and parts[above] == "..":
        above += 1
    return above <= depth and ".." not in parts[above:]
