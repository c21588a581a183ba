"""Framing of the Connect protocol with JSON: 5-byte envelopes for streams, codes for errors.

Source: the Connect protocol v1 (connectrpc.com/docs/protocol): one flag byte, a 4-byte big-endian length, the message.
"""

import json
import struct
from collections.abc import Iterator
from typing import Any

END_FLAG = 0x02
_HEAD = struct.Struct(">BI")

UNARY_TYPE = "application/json"
STREAM_TYPE = "application/connect+json"


class FrameError(Exception):
    """Bytes that are not a Connect stream, or a message above the limit."""


def frame(message: Any, flags: int = 0) -> bytes:
    """One message as an envelope."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return _HEAD.pack(flags, len(body)) + body


class Deframer:
    """Feed it bytes as they come; iterate the (flags, message) pairs that are complete. `limit`: bytes a message."""

    def __init__(self, limit: int = 4 << 20) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> Iterator[tuple[int, Any]]:
        buffer = self._buffer
        buffer += data
        position = 0
        try:
            while len(buffer) - position >= _HEAD.size:
                flags, length = _HEAD.unpack_from(buffer, position)
                if length > self._limit:
                    raise FrameError(f"a message of {length} bytes is above the limit of {self._limit}")
                end = position + _HEAD.size + length
                if len(buffer) < end:
                    break
                body = bytes(buffer[position + _HEAD.size : end])
                position = end
                try:
                    yield flags, json.loads(body) if body else {}
                except ValueError as error:
                    raise FrameError("a message is not JSON") from error
        finally:
            del buffer[:position]
