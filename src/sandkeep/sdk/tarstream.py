"""Reads a tar stream that is pushed into it, one chunk at a time. Format only; sdk/unpack decides what is written.

PAX, ustar and GNU long names; PAX sparse 1.0 is handed on as its map and data. The sender is a sandbox: sizes of
everything that is kept in memory are bounded, and whatever is malformed raises UnsafeArchive.
"""

import tarfile
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from sandkeep.sdk.errors import UnsafeArchive

_BLOCK = 512
_EXTENSION_LIMIT = 4 << 20
_SKIPPED = b"SANDKEEP.skipped"
# What else a header says is not kept: any number of headers may come before a member.
_USED = (
    b"path", b"linkpath", b"size", b"mtime",
    b"GNU.sparse.name", b"GNU.sparse.realsize", b"GNU.sparse.major", b"GNU.sparse.minor",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One member, with its extended headers applied. `size`: payload bytes in the stream."""

    name: str
    type: bytes
    size: int
    mode: int
    mtime: float
    link: str
    sparse_size: int | None = None


@dataclass
class _Extension:
    kind: bytes
    data: bytearray = field(default_factory=bytearray)


class TarStream(ABC):
    """Feed it bytes; it calls begin, payload (any number of times) and end for every member, left_out for what is none."""

    def __init__(self) -> None:
        self.complete = False
        self._head = bytearray()
        self._left = 0
        self._padding = 0
        self._extension: _Extension | None = None
        self._open = False
        self._pax: dict[str, str] = {}
        self._pax_global: dict[str, str] = {}
        self._long: dict[bytes, str] = {}

    @abstractmethod
    def begin(self, entry: Entry) -> None: ...

    @abstractmethod
    def payload(self, data: memoryview) -> None: ...

    @abstractmethod
    def end(self) -> None: ...

    @abstractmethod
    def left_out(self, told: str) -> None:
        """The sender could not, or would not, send something: its name and why."""

    def feed(self, data: bytes) -> None:
        """Raises UnsafeArchive for what is not a tar stream, and whatever begin, payload and end raise."""
        view = memoryview(data)
        while len(view) and not self.complete:
            if self._left:
                part, view = view[: self._left], view[self._left :]
                self._left -= len(part)
                if self._extension is not None:
                    self._extension.data += part
                else:
                    self.payload(part)
            elif self._padding:
                skipped = min(self._padding, len(view))
                self._padding -= skipped
                view = view[skipped:]
            else:
                wanted = _BLOCK - len(self._head)
                self._head += view[:wanted]
                view = view[wanted:]
                if len(self._head) == _BLOCK:
                    block = bytes(self._head)
                    self._head.clear()
                    self._header(block)
            if not self._left:
                self._close()

    def _close(self) -> None:
        """The payload is whole."""
        if self._extension is not None:
            extension, self._extension = self._extension, None
            self._apply(extension)
        elif self._open:
            self._open = False
            self.end()

    def _header(self, block: bytes) -> None:
        if not any(block):
            self.complete = True
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise UnsafeArchive(f"the tree is not a tar stream: {error}") from error
        extensions = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if info.type in extensions:
            if not 0 <= info.size <= _EXTENSION_LIMIT:
                raise UnsafeArchive(f"an extended header of {info.size} bytes")
            self._extension = _Extension(info.type)
            self._left, self._padding = info.size, -info.size % _BLOCK
            return
        pax = self._pax_global | self._pax
        long, self._pax, self._long = self._long, {}, {}
        try:
            size = int(pax.get("size", info.size))
            mtime = float(pax.get("mtime", info.mtime))
            sparse = int(pax["GNU.sparse.realsize"]) if "GNU.sparse.realsize" in pax else None
        except ValueError as error:
            raise UnsafeArchive("a number in a header is none") from error
        if size < 0 or (sparse is not None and sparse < 0):
            raise UnsafeArchive("a member of negative size")
        if sparse is not None and (pax.get("GNU.sparse.major"), pax.get("GNU.sparse.minor")) != ("1", "0"):
            raise UnsafeArchive("a sparse file in a format other than PAX 1.0")
        name = long.get(tarfile.GNUTYPE_LONGNAME) or pax.get("GNU.sparse.name") or pax.get("path") or info.name
        link = long.get(tarfile.GNUTYPE_LONGLINK) or pax.get("linkpath") or info.linkname
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            # Only regular files have a payload; the size of others is not to be believed (POSIX says: ignore it).
            size, sparse = 0, None
        self._left, self._padding, self._open = size, -size % _BLOCK, True
        self.begin(Entry(name, info.type, size, info.mode, mtime, link, sparse))

    def _apply(self, extension: _Extension) -> None:
        data = bytes(extension.data)
        if extension.kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            self._long[extension.kind] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            return
        target = self._pax_global if extension.kind == tarfile.XGLTYPE else self._pax
        while data:
            length, _, _ = data.partition(b" ")
            if not length.isdigit() or len(length) > 8 or not len(length) < int(length) <= len(data):
                raise UnsafeArchive("an extended header is malformed")
            record, data = data[len(length) + 1 : int(length) - 1], data[int(length) :]
            key, _, value = record.partition(b"=")
            if key == _SKIPPED:
                self.left_out(value.decode("utf-8", "replace"))
            elif key in _USED:
                target[key.decode()] = value.decode("utf-8", "surrogateescape")
