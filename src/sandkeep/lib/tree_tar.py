"""A file or a folder that strangers have shaped as a tar stream, made lazily: memory is one piece and one folder's names.

PAX, with what the agent's own trees carry (agent/PROTOCOL.md, section 6): mode, time, numeric owners, `user.*` attributes, hard
links within the tree, holes as sparse format 1.0. Links are links, never followed. What is neither file, folder nor link
has a header alone, so that whoever unpacks it names it; what is too deep, or vanished, is named by a global header.
"""

import errno
import fnmatch
import os
import stat
import tarfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

from sandkeep.lib import beneath

CHUNK = 512 << 10
DEEPEST = 256
"""Levels: each is an open folder."""
_BLOCK = 512
_MOST_LINKED = 100_000
"""Files with several names that are remembered: a further name of one beyond is a copy."""
_MOST_ATTRIBUTES = 64
_SPARSE_FROM = 64 << 10
_MOST_PIECES = 10_000


class TooDeepError(Exception):
    """A folder below DEEPEST others."""


class TreeTar(Iterator[bytes]):
    """The pieces of the tar of what is at `path` below `root`, called `name` in it ('.': names are relative to it). `follow`:
    a link there. `exclude`: shell patterns on a relative name or a base name. `whole`: TooDeepError for what would be left
    out. To be closed. Raises OSError when it is not there."""

    def __init__(
        self, root: int, path: bytes, name: bytes, *, follow: bool, whole: bool = False, exclude: Sequence[str] = ()
    ) -> None:
        self._exclude, self._whole = exclude, whole
        self._linked: dict[tuple[int, int], bytes] = {}
        self._stack: list[tuple[int, bytes, Iterator[bytes]]] = []
        self._handle = beneath.handle(root, path, follow=follow)
        self._pieces = self._gathered(self._all(self._handle, name))

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        self._pieces.close()
        for folder, _, _ in self._stack:
            os.close(folder)
        self._stack.clear()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    @staticmethod
    def _gathered(pieces: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
        waiting = bytearray()
        with closing(pieces):
            for piece in pieces:
                waiting += piece
                if len(waiting) >= CHUNK:
                    yield bytes(waiting)
                    waiting.clear()
        yield bytes(waiting) + bytes(2 * _BLOCK)

    def _all(self, handle: int, name: bytes) -> Generator[bytes, None, None]:
        found = os.fstat(handle)
        opened = beneath.opened(handle) if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) else -1
        yield from self._entry(name, found, handle, b"", opened)
        while self._stack:
            folder, lead, names = self._stack[-1]
            below = next(names, None)
            if below is None:
                self._stack.pop()
                os.close(folder)
                continue
            path = lead + below
            if self._excluded(path, below):
                continue
            try:
                found = os.stat(below, dir_fd=folder, follow_symlinks=False)
                regular = stat.S_ISREG(found.st_mode)
                opened = beneath.open_at(folder, below) if regular or stat.S_ISDIR(found.st_mode) else -1
            except OSError:
                yield _left_out(path, "vanished")
                continue
            yield from self._entry(path, found, folder, below, opened)

    def _excluded(self, path: bytes, name: bytes) -> bool:
        return any(
            fnmatch.fnmatch(os.fsdecode(path), pattern) or fnmatch.fnmatch(os.fsdecode(name), pattern)
            for pattern in self._exclude
        )

    def _entry(self, path: bytes, found: os.stat_result, folder: int, name: bytes, opened: int) -> Iterator[bytes]:
        """`opened`: a descriptor of a file or folder, which is closed here or when it has been walked."""
        if opened < 0:
            try:
                target = os.readlink(name, dir_fd=folder) if stat.S_ISLNK(found.st_mode) else None
            except OSError:  # it is something else by now
                yield _left_out(path, "vanished")
                return
            yield _header(path, found, tarfile.FIFOTYPE if target is None else tarfile.SYMTYPE, link=target)
            return
        kept = False
        try:
            found = os.fstat(opened)
            if stat.S_ISDIR(found.st_mode):
                yield _header(path + b"/", found, tarfile.DIRTYPE, attributes=_attributes(opened))
                if len(self._stack) >= DEEPEST:
                    if self._whole:
                        raise TooDeepError
                    yield _left_out(path, f"is deeper than {DEEPEST} folders")
                    return
                self._stack.append((opened, b"" if path == b"." else path + b"/", iter(sorted(beneath.names(opened)))))
                kept = True
                return
            key = found.st_dev, found.st_ino
            if found.st_nlink > 1 and key in self._linked:
                yield _header(path, found, tarfile.LNKTYPE, link=self._linked[key])
                return
            if found.st_nlink > 1 and len(self._linked) < _MOST_LINKED:
                self._linked[key] = path
            yield from _file(path, found, opened)
        finally:
            if not kept:
                os.close(opened)


def _file(path: bytes, found: os.stat_result, opened: int) -> Iterator[bytes]:
    attributes = _attributes(opened)
    pieces = _pieces(opened, found)
    if pieces is None:
        yield _header(path, found, tarfile.REGTYPE, size=found.st_size, attributes=attributes)
        yield from _content(opened, 0, found.st_size)
        yield bytes(-found.st_size % _BLOCK)
        return
    lines = [len(pieces), *(number for piece in pieces for number in piece)]
    chart = b"".join(b"%d\n" % number for number in lines)
    chart += bytes(-len(chart) % _BLOCK)
    size = len(chart) + sum(length for _, length in pieces)
    sparse = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": os.fsdecode(path),
        "GNU.sparse.realsize": str(found.st_size),
    }
    folder, _, base = path.rpartition(b"/")
    inner = b"/".join(part for part in (folder, b"GNUSparseFile.0", base) if part)
    yield _header(inner, found, tarfile.REGTYPE, size=size, attributes=attributes | sparse)
    yield chart
    for offset, length in pieces:
        yield from _content(opened, offset, length)
    yield bytes(-size % _BLOCK)


def _pieces(opened: int, found: os.stat_result) -> list[tuple[int, int]] | None:
    """(offset, length) of what is not a hole, closed by (size, 0) as the format wants it; None: it has no holes worth it."""
    if found.st_size < _SPARSE_FROM or found.st_blocks * 512 >= found.st_size:
        return None
    pieces, position = list[tuple[int, int]](), 0
    try:
        while position < found.st_size:
            try:
                begin = os.lseek(opened, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nothing but a hole follows
                    raise
                break
            position = min(os.lseek(opened, begin, os.SEEK_HOLE), found.st_size)
            if begin >= found.st_size:
                break
            pieces.append((begin, position - begin))
            if len(pieces) > _MOST_PIECES:
                return None
    except OSError:
        return None
    return [*pieces, (found.st_size, 0)]


def _content(opened: int, offset: int, length: int) -> Iterator[bytes]:
    """Exactly so many bytes: what was cut meanwhile is zeros, since the header is out already."""
    end = offset + length
    while offset < end:
        block = os.pread(opened, min(CHUNK, end - offset), offset) or bytes(min(CHUNK, end - offset))
        offset += len(block)
        yield block


def _attributes(opened: int) -> dict[str, str]:
    found = {}
    try:
        for name in os.listxattr(opened)[:_MOST_ATTRIBUTES]:
            if name.startswith("user.") and "=" not in name:
                found[f"SCHILY.xattr.{name}"] = os.fsdecode(os.getxattr(opened, name))
    except OSError:
        return found
    return {name: value for name, value in found.items() if name.isprintable()}


def _header(
    path: bytes,
    found: os.stat_result,
    kind: bytes,
    *,
    size: int = 0,
    link: bytes | None = None,
    attributes: dict[str, str] | None = None,
) -> bytes:
    info = tarfile.TarInfo(os.fsdecode(path))
    info.type, info.size, info.linkname = kind, size, os.fsdecode(link or b"")
    info.mode, info.uid, info.gid = stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid
    info.mtime, fraction = divmod(found.st_mtime_ns, 10**9)
    info.pax_headers = dict(attributes or {})
    if fraction and info.mtime >= 0:  # whole seconds need no further header
        info.pax_headers["mtime"] = f"{info.mtime}.{fraction:09d}"
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _left_out(path: bytes, why: str) -> bytes:
    return tarfile.TarInfo.create_pax_global_header({"SANDKEEP.skipped": f"{os.fsdecode(path)} {why}"})
