"""Bytes as they come, in blocks with their length in front, so that an error can be said in the middle of them: a stream of HTTP
can only break off. Both ends of the runner's socket use it."""

import struct

_HEAD = struct.Struct(">I")
_ERROR = 1 << 31
LONGEST = 16 << 20
END = _HEAD.pack(0)
"""What a stream that is whole ends with."""


class BlocksError(ValueError):
    """It is none of ours, or was cut."""


def block(data: bytes) -> bytes:
    return _HEAD.pack(len(data)) + data


def error(said: bytes) -> bytes:
    return _HEAD.pack(_ERROR | len(said)) + said


class Blocks:
    """Feed it what came. `ended`: all is there; `error`: what was said instead of the rest."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self.ended = False
        self.error: bytes | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """The blocks that are whole now. Raises BlocksError."""
        self._waiting += data
        found, position = [], 0
        while self.error is None and not self.ended and len(self._waiting) - position >= _HEAD.size:
            (head,) = _HEAD.unpack_from(self._waiting, position)
            length = head & ~_ERROR
            if length > LONGEST:
                raise BlocksError(f"a block of {length} bytes")
            end = position + _HEAD.size + length
            if len(self._waiting) < end:
                break
            content = bytes(self._waiting[position + _HEAD.size : end])
            position = end
            if head & _ERROR:
                self.error = content
            elif not length:
                self.ended = True
            else:
                found.append(content)
        del self._waiting[:position]
        return found
