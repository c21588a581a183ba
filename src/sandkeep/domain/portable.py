"""The file that carries a sandbox from one installation to another, as far as all can see it: its key as text, its frames,
and what it says of itself. Read by control (the head) and by the engine (all of it); what is sealed in it only by
engine/portable.

    magic, then frames (a letter, a length of four bytes, so many bytes):
    K  the file's own data key, wrapped by the key that its owner has
    .  nothing: whoever writes is still reading
    M  the manifest
    P  a piece: those of the index first, then content in the order of the manifest
    E  the end
"""

import re
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sandkeep.domain.errors import InvalidArgument
from sandkeep.domain.sandbox import Spec

MAGIC = b"sandkeep portable sandbox 1\n"
KEY, BEAT, MANIFEST, PIECE, END = b"K", b".", b"M", b"P", b"E"
KEY_BYTES = 32
MOST_KEY = 256
MOST_MANIFEST = 64 << 20
"""Bytes: 1.4 million pieces, some terabytes."""
MOST_BEATS = 100_000
FILE_KEY_HEADER = "Sandkeep-File-Key"
_FRAME = struct.Struct(">cI")
_KEY = re.compile(r"skf_([0-9a-f]{64})")
_OURS = "a file for import is made by: sandkeep export NAME --output FILE"


@dataclass(frozen=True)
class Carried:
    """What a file says of the sandbox in it. size: bytes of content; memory: it is paused with memory and processes; source:
    its id where it came from."""

    name: str | None
    spec: Spec
    size: int
    memory: bool
    source: str
    saved_at: float


def key_text(key: bytes) -> str:
    return f"skf_{key.hex()}"


def parse_key(text: str) -> bytes:
    """Raises InvalidArgument, which does not repeat it."""
    found = _KEY.fullmatch(text.strip())
    if not found:
        raise InvalidArgument(
            "this is no key of an exported file",
            hint="it is what `sandkeep export` printed, or wrote to its --key-file: skf_ and 64 digits",
            field="key",
        )
    return bytes.fromhex(found[1])


def frame(kind: bytes, data: bytes = b"") -> bytes:
    return _FRAME.pack(kind, len(data)) + data


LAST = frame(END)
"""What a file that is whole ends with."""


class Frames:
    """A file as it comes. Raises InvalidArgument for what is cut short, longer than it may be, or none of ours."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._waiting = bytearray()
        self._begun = self._ended = False

    async def next(self, most: int) -> tuple[bytes, bytes]:
        """Kind and content; most: bytes of it."""
        if not self._begun:
            await self._need(len(MAGIC))
            if self._take(len(MAGIC)) != MAGIC:
                raise InvalidArgument("this is no exported sandbox", hint=_OURS)
            self._begun = True
        await self._need(_FRAME.size)
        kind, size = _FRAME.unpack_from(self._waiting)
        if kind not in (KEY, BEAT, MANIFEST, PIECE, END) or size > most:
            raise InvalidArgument("the file is damaged: a part of it is none that there can be", hint=_OURS)
        self._take(_FRAME.size)
        await self._need(size)
        return kind, self._take(size)

    async def head(self) -> tuple[bytes, bytes]:
        """The wrapped key and the manifest."""
        kind, key = await self.next(MOST_KEY)
        if kind != KEY:
            raise InvalidArgument("the file does not begin with its key", hint=_OURS)
        for _ in range(MOST_BEATS):
            kind, manifest = await self.next(MOST_MANIFEST)
            if kind == MANIFEST:
                return key, manifest
            if kind != BEAT or manifest:
                break
        raise InvalidArgument("the file has no manifest", hint=_OURS)

    async def ends(self) -> bool:
        """Whether nothing follows."""
        if self._waiting:
            return False
        async for chunk in self._chunks:
            if chunk:
                return False
        return True

    async def rest(self) -> AsyncIterator[bytes]:
        """All that was not taken, as it comes."""
        if self._waiting:
            yield self._take(len(self._waiting))
        async for chunk in self._chunks:
            yield chunk

    async def _need(self, size: int) -> None:
        while len(self._waiting) < size:
            try:
                self._waiting += await anext(self._chunks)
            except StopAsyncIteration:
                what = "the file is cut short" if self._begun else "this is no exported sandbox"
                raise InvalidArgument(what, hint="copy it again" if self._begun else _OURS) from None

    def _take(self, size: int) -> bytes:
        data = bytes(self._waiting[:size])
        del self._waiting[:size]
        return data


def head(key: bytes, manifest: bytes) -> bytes:
    """As a file begins."""
    return MAGIC + frame(KEY, key) + frame(MANIFEST, manifest)
