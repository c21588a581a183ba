"""Makes a disk and memory files again from sealed pieces, or only looks whether that can be done. Run by the confined program.

First every name, then the content, piece by piece as they come, then owners, modes and times, so that nothing is written to
a file that has its rights already. Names are opened one by one below the root, and no link is ever followed.
"""

import os
import stat
from array import array
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator
from contextlib import suppress

from sandkeep.engine.archive.format import PIECE, Body, Entry, Manifest, MemoryFile, kind_of, read_entries
from sandkeep.engine.archive.hands import Hands
from sandkeep.engine.archive.keys import DamagedError, DataKey

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_OPEN = 128

Fetch = Callable[[tuple[bytes, ...]], Iterator[bytes]]
"""The sealed pieces of these names, in this order."""


class Unpacker:
    def __init__(self, key: DataKey, manifest: Manifest, fetch: Fetch, hands: Hands | None = None) -> None:
        self._hands = hands or Hands(0)
        self._key = key.of(manifest.head.format)
        self._body: Body = manifest.body
        self._fetch = fetch

    def verify(self, sure: Container[bytes] = ()) -> None:
        """Raises DamagedError unless all of it is there and whole; with all pieces that are not, as far as the index goes.
        `sure`: pieces of content that need not be looked at."""
        damaged: list[DamagedError] = []
        try:
            for _ in self._entries():
                pass
        except DamagedError as error:
            damaged.append(error)
        names = tuple(name for name in self._body.content if name not in sure)
        pieces = zip(names, self._fetch(names), strict=True)
        damaged += [error for error in self._hands.in_order(self._wrong_with, pieces) if error]
        if damaged:
            more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            raise DamagedError(f"{damaged[0]}{more}", tuple(name for error in damaged for name in error.pieces))

    def unpack(self, root: int, memory: int | None) -> tuple[int, int | None]:
        """Into empty folders; without one for the memory, its pieces are not even asked for. Returns how many devices were left
        out: nobody may make one of a number that a guest, or a stranger, chose; and the inode of the first name, if the file
        system numbered all names that have one in their order (former.py). Raises DamagedError, OSError."""
        left_out, tree, _ = self._unpack(root, memory)
        return left_out, tree.first

    def rehearse(self, root: int, memory: int | None) -> int:
        """As `unpack`; then what was made is read again, and compared with what the manifest names. Raises the same."""
        left_out, tree, targets = self._unpack(root, memory)
        for number in range(len(tree.entries)):
            tree.check(number)
        files = [self._memory_file(memory, file) for file in self._body.memory] if memory is not None else []
        found = (self._made(piece, tree, targets, files) for piece in targets.wanted())
        names = self._hands.in_order(lambda plain: self._key.name(b"content", plain), found)
        for piece, name in zip(targets.wanted(), names, strict=True):
            if name != (wanted := self._body.content[piece]):
                raise DamagedError(f"what was made of the piece {wanted.hex()[:16]} is something else", (wanted.hex(),))
        for file in files:
            os.close(file)
        tree.close()
        return left_out

    @staticmethod
    def _made(piece: int, tree: "_Tree", targets: "_Targets", files: list[int]) -> bytes:
        """The piece again, of what lies there."""
        found = bytearray()
        for owner, at, start, size in targets.of(piece):
            data = tree.read(owner, at, size) if owner >= 0 else os.pread(files[-owner - 1], size, at)
            found.extend(bytes(max(0, start + size - len(found))))
            found[start : start + size] = data
        return bytes(found)

    @staticmethod
    def _memory_file(folder: int, wanted: MemoryFile) -> int:
        file = os.open(wanted.name, _READ, dir_fd=folder)
        if os.fstat(file).st_size != wanted.size:
            raise DamagedError(f"the memory file {wanted.name} has another size than the manifest says")
        return file

    def _unpack(self, root: int, memory: int | None) -> tuple[int, "_Tree", "_Targets"]:
        tree = _Tree(root)
        targets = _Targets(len(self._body.content))
        left_out, size = 0, sum(file.size for file in self._body.memory)
        for number, entry in enumerate(self._entries()):
            size += entry.size
            if size > self._body.size:
                raise DamagedError("the files are larger than the manifest says")
            left_out += not tree.make(number, entry)
            if entry.at:
                targets.add(entry.at[0], number, 0, entry.at[1], entry.size)
            for place, piece in entry.pieces:
                targets.add(piece, number, place * PIECE, 0, min(PIECE, entry.size - place * PIECE))
        files: list[int] = []
        if memory is not None:
            self._make_memory_files(memory, targets, files)
        wanted = targets.wanted()
        names = tuple(self._body.content[piece] for piece in wanted)
        opened = self._hands.in_order(self._open, zip(names, self._fetch(names), strict=True))
        for piece, plain in zip(wanted, opened, strict=True):
            for owner, to, start, size in targets.of(piece):
                if start + size > len(plain):
                    raise DamagedError(f"the piece {piece} is shorter than what is to be in it")
                data = memoryview(plain)[start : start + size]
                if owner >= 0:
                    tree.write(owner, to, data)
                else:
                    _write(files[-owner - 1], to, data)
        for file in files:
            os.close(file)
        tree.finish()
        return left_out, tree, targets

    def _open(self, piece: tuple[bytes, bytes]) -> bytes:
        """In another thread, as `_wrong_with`: name and sealed piece."""
        return self._key.open(b"content", *piece, PIECE)

    def _wrong_with(self, piece: tuple[bytes, bytes]) -> DamagedError | None:
        try:
            self._open(piece)
        except DamagedError as error:
            return error
        return None

    def _entries(self) -> Iterator[Entry]:
        names = self._body.index
        pieces = (
            self._key.open(b"index", name, sealed, PIECE)
            for name, sealed in zip(names, self._fetch(names), strict=True)
        )
        return read_entries(pieces, self._body.entries, len(self._body.content))

    def _make_memory_files(self, folder: int, targets: "_Targets", files: list[int]) -> None:
        for owner, file in enumerate(self._body.memory):
            opened = os.open(file.name, _WRITE | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
            files.append(opened)
            os.fchown(opened, 0, 0)
            os.ftruncate(opened, file.size)
            for place, piece in file.pieces:
                targets.add(piece, -owner - 1, place * PIECE, 0, min(PIECE, file.size - place * PIECE))


class _Targets:
    """Where each piece goes: lists of (owner, offset there, offset in the piece, size), kept flat: there may be millions."""

    def __init__(self, pieces: int) -> None:
        self._of: list[array[int] | None] = [None] * pieces

    def add(self, piece: int, owner: int, to: int, start: int, size: int) -> None:
        found = self._of[piece]
        if found is None:
            found = self._of[piece] = array("q")
        found.extend((owner, to, start, size))

    def wanted(self) -> list[int]:
        return [piece for piece, found in enumerate(self._of) if found is not None]

    def of(self, piece: int) -> Iterator[tuple[int, int, int, int]]:
        found = self._of[piece] or array("q")
        for at in range(0, len(found), 4):
            yield found[at], found[at + 1], found[at + 2], found[at + 3]


class _Tree:
    """The names below one root, each reached by its number."""

    def __init__(self, root: int) -> None:
        self.entries: list[Entry] = []
        self._root = root
        self._open: OrderedDict[int, int] = OrderedDict()
        self.first: int | None = None
        """The inode of the first name, while each that was made has the next number."""
        self._next = 0

    def make(self, number: int, entry: Entry) -> bool:
        """False: it was left out."""
        self.entries.append(entry)
        if not number:
            return True
        folder, name = self._folder(entry.parent), entry.name
        match entry.kind:
            case "d":
                os.mkdir(name, 0o700, dir_fd=folder)
            case "f":
                file = os.open(name, _WRITE | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
                try:
                    if entry.size:
                        os.ftruncate(file, entry.size)
                finally:
                    os.close(file)
            case "l":
                os.symlink(entry.link, name, dir_fd=folder)
            case "h":
                same = self.entries[entry.same]
                if same.kind in "cb":
                    return False
                os.link(
                    same.name,
                    name,
                    src_dir_fd=self._folder(same.parent),
                    dst_dir_fd=self._folder(entry.parent),
                    follow_symlinks=False,
                )
            case "p" | "s":
                os.mknod(name, (stat.S_IFIFO if entry.kind == "p" else stat.S_IFSOCK) | 0o600, dir_fd=folder)
            case _:
                return False
        if entry.kind != "h":
            self._count(os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino)
        return True

    def _count(self, inode: int) -> None:
        if not self._next:
            self.first = inode
        elif inode != self._next:
            self.first = None
        self._next = inode + 1

    def write(self, number: int, at: int, data: memoryview) -> None:
        entry = self.entries[number]
        file = os.open(entry.name, _WRITE, dir_fd=self._folder(entry.parent))
        try:
            _write(file, at, data)
        finally:
            os.close(file)

    def finish(self) -> None:
        """Owners first, then modes, which a change of owner would cut; folders last and the deepest first, since what is made
        in one changes its time."""
        for entry in self.entries:
            if entry.kind in "flps":
                self._dress(self._folder(entry.parent), entry)
        for number in range(len(self.entries) - 1, -1, -1):
            if self.entries[number].kind == "d":
                folder = self._folder(number)
                self._dress_open(folder, self.entries[number])
        self.close()

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def read(self, number: int, at: int, size: int) -> bytes:
        entry = self.entries[number]
        file = os.open(entry.name, _READ, dir_fd=self._folder(entry.parent))
        try:
            return os.pread(file, size, at)
        finally:
            os.close(file)

    def check(self, number: int) -> None:
        """Raises DamagedError for one that is there otherwise than its entry says. Devices, and other names of them, are not."""
        entry = self.entries[number]
        kind = self.entries[entry.same].kind if entry.kind == "h" else entry.kind
        if kind in "cb":
            return
        folder, name = (self._folder(entry.parent), entry.name) if number else (self._root, b".")
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if entry.kind == "h":
            same = self.entries[entry.same]
            other = os.stat(same.name, dir_fd=self._folder(same.parent), follow_symlinks=False)
            fits = (found.st_dev, found.st_ino) == (other.st_dev, other.st_ino)
        else:
            fits = kind_of(found.st_mode) == kind and (found.st_uid, found.st_gid) == (entry.uid, entry.gid)
            fits = fits and found.st_mtime_ns == entry.mtime
            fits = fits and (kind == "l" or stat.S_IMODE(found.st_mode) == entry.mode)
            fits = fits and (kind != "f" or found.st_size == entry.size)
            fits = fits and (kind != "l" or os.readlink(name, dir_fd=folder) == entry.link)
            fits = fits and (not entry.xattrs or self._has_xattrs(folder, name, entry))
        if not fits:
            raise DamagedError(f"what was made of entry {number} of the index is something else")

    def _has_xattrs(self, folder: int, name: bytes, entry: Entry) -> bool:
        file = os.open(name, _READ, dir_fd=folder)
        try:
            there = set(os.listxattr(file))
            return all(one in there and os.getxattr(file, one) == value for one, value in entry.xattrs.items())
        finally:
            os.close(file)

    def _dress(self, folder: int, entry: Entry) -> None:
        if entry.kind == "f":
            file = os.open(entry.name, _WRITE, dir_fd=folder)
            try:
                self._dress_open(file, entry)
            finally:
                os.close(file)
            return
        os.chown(entry.name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
        if entry.kind != "l":
            # No link can be there: this very program made a FIFO or a socket of that name, and nobody else writes here.
            os.chmod(entry.name, entry.mode, dir_fd=folder)
        os.utime(entry.name, ns=(entry.mtime, entry.mtime), dir_fd=folder, follow_symlinks=False)

    def _dress_open(self, file: int, entry: Entry) -> None:
        os.fchown(file, entry.uid, entry.gid)
        os.fchmod(file, entry.mode)
        for name, value in entry.xattrs.items():
            os.setxattr(file, name, value)
        os.utime(file, ns=(entry.mtime, entry.mtime))

    def _folder(self, number: int) -> int:
        """Open; the last ones stay so."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        missing = []
        while number and number not in self._open:
            missing.append(number)
            number = self.entries[number].parent
        if number not in self._open:
            self._keep(0, os.open(".", _FOLDER, dir_fd=self._root))
        here = self._open[number]
        for one in reversed(missing):
            here = os.open(self.entries[one].name, _FOLDER, dir_fd=here)
            self._keep(one, here)
        return here

    def _keep(self, number: int, folder: int) -> None:
        self._open[number] = folder
        while len(self._open) > _MOST_OPEN:
            with suppress(OSError):
                os.close(self._open.popitem(last=False)[1])


def _write(file: int, at: int, data: memoryview) -> None:
    while data:
        done = os.pwrite(file, data, at)
        data, at = data[done:], at + done
