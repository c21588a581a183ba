"""What the confined program and the engine say to each other, over two pipes: a kind (one letter), a length, so many bytes."""

import struct
from typing import BinaryIO

MOST = (512 << 20) + 4096
_HEAD = struct.Struct(">cI")

TASK = b"T"
"""To the program: JSON. What is to be done, and the keys for it."""
MANIFEST = b"M"
"""To the program: a manifest, to be believed after it was checked."""
SURE = b"S"
"""To the program: names of pieces that need not be read back."""
PIECE = b"P"
"""Either way: a name, and the sealed piece."""
WANT = b"W"
"""To the engine: names of pieces that are needed next."""
DONE = b"D"
"""To the engine: JSON; the last one."""
DAMAGED = b"X"
FAILED = b"F"
"""To the engine: JSON, with words; the last one."""


def head(kind: bytes, size: int) -> bytes:
    return _HEAD.pack(kind, size)


def parse_head(data: bytes) -> tuple[bytes, int]:
    """Raises ValueError."""
    kind, size = _HEAD.unpack(data)
    if size > MOST:
        raise ValueError("a frame is too long")
    return kind, size


HEAD = _HEAD.size


def send(pipe: BinaryIO, kind: bytes, *data: bytes) -> None:
    pipe.write(head(kind, sum(map(len, data))))
    for part in data:
        pipe.write(part)


def receive(pipe: BinaryIO, limit: int = MOST) -> tuple[bytes, bytes]:
    """limit: bytes of all but the last one. Raises EOFError when the other side is gone, ValueError."""
    begun = pipe.read(HEAD)
    if len(begun) < HEAD:
        raise EOFError
    kind, size = parse_head(begun)
    if size > limit and kind != DONE:
        raise ValueError("a frame is too long")
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return kind, data
