"""Reads a disk and memory files into sealed pieces. Run by the confined program; nothing else is asked of the host.

Large files are cut at fixed places, and so are memory files; pieces of zeros are left out. Small files share pieces: where
one ends is said by the names in it, so that a change of one file changes its own piece and no other.

Pieces are named and sealed side by side (hands.py), and settled in the order in which they were cut: until then they have a
ticket, and entries that need them wait for their numbers.
"""

import errno
import os
import stat
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Container, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace

from sandkeep.engine.archive.format import (
    DEEPEST,
    MOST_ENTRIES,
    PIECE,
    Body,
    Entry,
    MemoryFile,
    kept_xattr,
    kind_of,
    write_entry,
)
from sandkeep.engine.archive.former import Former
from sandkeep.engine.archive.hands import Hands
from sandkeep.engine.archive.keys import DataKey

_SMALL = 256 << 10
_ENDS = 16
"""One of so many names ends the piece that small files share."""
_MOST_WAITING = 4096
_ZEROS = bytes(PIECE)
_PLAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

Put = Callable[[bytes, bytes], None]
"""Name and sealed piece."""


class UnpackableError(Exception):
    """The disk holds what an archive cannot; says what."""


class Packer:
    """One archive. `known`: pieces that the store has already: these are not sealed again. `former`: what the disk still has of
    an archive before: this is not read again."""

    def __init__(
        self,
        key: DataKey,
        known: Container[bytes],
        put: Put,
        hands: Hands | None = None,
        former: Former | None = None,
    ) -> None:
        self._former = former
        self._again: dict[int, int] = {}
        """Tickets of pieces that small files share, by their numbers in the former table."""
        self._hands = hands or Hands(0)
        self._key = key
        self._known = known
        self._put = put
        self._content: list[bytes] = []
        self._numbers: dict[bytes, int] = {}
        self._index: list[bytes] = []
        self._sealed: set[bytes] = set()
        self._size = 0
        self._lines = bytearray()
        self._shared = bytearray()
        self._waiting: list[Entry] = []
        """Entries since the first whose content is in the piece that is being filled: it has no ticket yet."""
        self._under_way: deque[Future[tuple[bytes, bytes | None]]] = deque()
        self._settled = array("I")
        """By tickets: numbers in the table."""
        self._unwritten: deque[tuple[int, Entry]] = deque()
        """Entries, each with the last ticket that has to be settled before it."""

    def pack(self, root: int, memory: int | None) -> Body:
        """root, memory: open folders, in which nobody writes meanwhile. Raises UnpackableError, OSError."""
        entries = 0
        if self._former:
            self._former.begin(os.fstat(root))
            for _, _, _, seen in _visited(root):
                self._former.see(seen)
        for entry in self._walk(root):
            entries += 1
            if entries > MOST_ENTRIES:
                raise UnpackableError(f"there are more than {MOST_ENTRIES} names on the disk")
            if not self._waiting:
                self._write(entry)
        self._end_shared()
        found = list(self._memory_files(memory)) if memory is not None else []
        self._settle(0)
        self._end_index()
        files = tuple(replace(file, pieces=self._numbered(file.pieces)) for file in found)
        return Body(entries, self._size, tuple(self._index), tuple(self._content), files)

    # -- the tree

    def _walk(self, root: int) -> Iterator[Entry]:
        """In the order of names, each folder before what it holds."""
        first: dict[tuple[int, int], int] = {}
        for number, (here, parent, name, found) in enumerate(_visited(root)):
            plain = os.fsencode(name) if number else b""
            if not stat.S_ISDIR(found.st_mode) and found.st_nlink > 1:
                same = first.setdefault((found.st_dev, found.st_ino), number)
                if same != number:
                    yield self._keep(Entry(parent, plain, "h", same=same))
                    continue
            yield self._entry(here, name, parent, plain, found)

    def _entry(self, folder: int, name: str, parent: int, plain: bytes, found: os.stat_result) -> Entry:
        if self._former and (former := self._former.entry(found)):
            return self._unread(former, parent, plain, self._former.content)
        kind = kind_of(found.st_mode)
        entry = Entry(
            parent,
            plain,
            kind,
            stat.S_IMODE(found.st_mode),
            found.st_uid,
            found.st_gid,
            found.st_mtime_ns,
            xattrs=_xattrs(folder, name, kind),
        )
        if kind == "f":
            return self._file(folder, name, entry, found.st_size)
        if kind == "l":
            entry = entry._replace(link=os.fsencode(os.readlink(name, dir_fd=folder)))
        elif kind in "cb":
            entry = entry._replace(device=(os.major(found.st_rdev), os.minor(found.st_rdev)))
        return self._keep(entry)

    def _file(self, folder: int, name: str, entry: Entry, size: int) -> Entry:
        self._size += size
        file = os.open(name, _PLAIN, dir_fd=folder)
        try:
            if size > _SMALL:
                return self._keep(entry._replace(size=size, pieces=tuple(self._pieces(file, size))))
            data = _read(file, size, 0)
        finally:
            os.close(file)
        if not data.strip(b"\0"):
            return self._keep(entry._replace(size=size))
        if len(self._shared) + len(data) > PIECE:
            self._end_shared()
        placed = entry._replace(size=size, at=(-1, len(self._shared)))
        self._shared += data
        self._waiting.append(placed)
        if zlib.crc32(entry.name) % _ENDS == 0:
            self._end_shared()
        return placed

    def _unread(self, former: Entry, parent: int, plain: bytes, content: tuple[bytes, ...]) -> Entry:
        """Its pieces are those that it had, in this table."""
        self._size += former.size
        at, pieces = former.at, former.pieces
        if pieces:
            pieces = tuple((place, self._ready(content[piece])) for place, piece in pieces)
        elif at:
            if at[0] not in self._again:
                self._again[at[0]] = self._ready(content[at[0]])
            at = self._again[at[0]], at[1]
        return self._keep(former._replace(parent=parent, name=plain, at=at, pieces=pieces))

    def _keep(self, entry: Entry) -> Entry:
        """After those that wait."""
        if len(self._waiting) >= _MOST_WAITING:
            self._end_shared()
        if self._waiting:
            self._waiting.append(entry)
        return entry

    def _end_shared(self) -> None:
        if not self._waiting:
            return
        ticket = self._piece(bytes(self._shared))
        for entry in self._waiting:
            mine = entry.at is not None and entry.at[0] < 0
            self._write(entry._replace(at=(ticket, entry.at[1])) if mine and entry.at else entry)
        self._waiting.clear()
        self._shared.clear()

    # -- pieces

    def _pieces(self, file: int, size: int) -> Iterator[tuple[int, int]]:
        """(number in the file, ticket); holes are not even read."""
        at = 0
        while at < size:
            try:
                at = os.lseek(file, at, os.SEEK_DATA) // PIECE * PIECE
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return  # no data after this
            data = _read(file, min(PIECE, size - at), at)
            if data != _ZEROS[: len(data)]:
                yield at // PIECE, self._piece(data)
            at += PIECE

    def _piece(self, data: bytes) -> int:
        """Its ticket."""
        ticket = len(self._settled) + len(self._under_way)
        self._under_way.append(self._hands.begin(self._sealed_piece, data))
        self._settle(self._hands.room)
        return ticket

    def _ready(self, name: bytes) -> int:
        """As `_piece`, for one that the store has."""
        ticket = len(self._settled) + len(self._under_way)
        done: Future[tuple[bytes, bytes | None]] = Future()
        done.set_result((name, None))
        self._under_way.append(done)
        self._settle(self._hands.room)
        return ticket

    def _sealed_piece(self, data: bytes) -> tuple[bytes, bytes | None]:
        """In another thread. Its name; sealed if nobody has it yet. Of two that are the same and under way at once both may
        be sealed: one is put."""
        name = self._key.name(b"content", data)
        needless = name in self._known or name in self._sealed
        return name, None if needless else self._key.seal(name, data)

    def _settle(self, most: int) -> None:
        """Until so many are under way. They are put in the order of the table."""
        while len(self._under_way) > most:
            name, sealed = self._under_way.popleft().result()
            number = self._numbers.get(name)
            if number is None:
                number = self._numbers[name] = len(self._content)
                self._content.append(name)
                if sealed is not None and name not in self._sealed:
                    self._put_piece(name, sealed)
            self._settled.append(number)
        while self._unwritten and self._unwritten[0][0] < len(self._settled):
            self._write_line(self._unwritten.popleft()[1])

    def _numbered(self, pieces: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        return tuple((place, self._settled[ticket]) for place, ticket in pieces)

    def _write(self, entry: Entry) -> None:
        """After those before it, when its pieces are settled."""
        if entry.at and entry.at[0] < 0:
            return  # it is written with its piece
        last = entry.at[0] if entry.at else max((ticket for _, ticket in entry.pieces), default=-1)
        self._unwritten.append((last, entry))
        if len(self._unwritten) > _MOST_WAITING:
            self._settle(0)

    def _write_line(self, entry: Entry) -> None:
        line = write_entry(entry, self._settled)
        if len(self._lines) + len(line) > PIECE:
            self._end_index()
        self._lines += line

    def _end_index(self) -> None:
        if self._lines:
            plain = bytes(self._lines)
            name = self._key.name(b"index", plain)
            self._index.append(name)
            if name not in self._known and name not in self._sealed:
                self._put_piece(name, self._key.seal(name, plain))
            self._lines.clear()

    def _put_piece(self, name: bytes, sealed: bytes) -> None:
        self._sealed.add(name)
        self._put(name, sealed)

    def _memory_files(self, folder: int) -> Iterator[MemoryFile]:
        for name in sorted(os.listdir(folder)):
            file = os.open(name, _PLAIN, dir_fd=folder)
            try:
                size = os.fstat(file).st_size
                self._size += size
                yield MemoryFile(name, size, tuple(self._pieces(file, size)))
            finally:
                os.close(file)


def _visited(root: int) -> Iterator[tuple[int, int, str, os.stat_result]]:
    """Every name, from the root on: the open folder that it is in, the number of that folder, and what it is. One folder is open
    at a time, so depth costs nothing."""
    number = 0
    here = os.open(".", _PLAIN | os.O_DIRECTORY, dir_fd=root)
    try:
        yield here, 0, ".", os.fstat(here)
        waiting = [(0, _names(here))]
        while waiting:
            parent, names = waiting[-1]
            if not names:
                waiting.pop()
                if waiting:
                    here = _moved(here, "..")
                continue
            name = names.pop()
            found = os.stat(name, dir_fd=here, follow_symlinks=False)
            number += 1
            yield here, parent, name, found
            if stat.S_ISDIR(found.st_mode):
                if len(waiting) >= DEEPEST:
                    raise UnpackableError(f"there are folders more than {DEEPEST} deep on the disk")
                here = _moved(here, name)
                waiting.append((number, _names(here)))
    finally:
        os.close(here)


def _names(folder: int) -> list[str]:
    """From the last to the first, as they are taken."""
    return sorted(os.listdir(folder), key=os.fsencode, reverse=True)


def _moved(folder: int, to: str) -> int:
    fresh = os.open(to, _PLAIN | os.O_DIRECTORY, dir_fd=folder)
    os.close(folder)
    return fresh


def _read(file: int, size: int, at: int) -> bytes:
    data = os.pread(file, size, at)
    while len(data) < size:
        more = os.pread(file, size - len(data), at + len(data))
        if not more:
            raise UnpackableError("a file became shorter while it was read")
        data += more
    return data


def _xattrs(folder: int, name: str, kind: str) -> dict[str, bytes]:
    """Of files and folders; what else can have attributes is not ours to keep."""
    if kind not in "df":
        return {}
    file = os.open(name, _PLAIN | (os.O_DIRECTORY if kind == "d" else 0), dir_fd=folder)
    found: dict[str, bytes] = {}
    try:
        with suppress(OSError):  # a file system without any
            for one in os.listxattr(file):
                if kept_xattr(one):
                    found[one] = os.getxattr(file, one)
    finally:
        os.close(file)
    return found
