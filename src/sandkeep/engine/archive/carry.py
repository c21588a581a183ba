"""What the confined program does for a file that carries a sandbox: pour it out, and look into one. See engine/portable.

A file that is read from its beginning to its end must begin with the manifest, which is known when all was read. So the
disk is read twice: once for names and index, then for the content; nobody writes to it meanwhile.
"""

import json
import resource
from typing import Any, BinaryIO

from sandkeep.engine.archive import frames
from sandkeep.engine.archive.format import PIECE, Manifest, body_to_json
from sandkeep.engine.archive.hands import Hands
from sandkeep.engine.archive.keys import DamagedError, DataKey
from sandkeep.engine.archive.pack import Packer, UnpackableError

BODY = b"B"
"""To the engine: JSON. After all pieces of the index, and before those of content."""
ROOM = 3 << 30
"""Bytes of memory for what is made of a stranger's file."""
_MOST_FACTS = 1 << 20


class _Noting(DataKey):
    """Remembers which pieces are content: these are not poured the first time."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self.content: set[bytes] = set()

    def name(self, kind: bytes, plain: bytes) -> bytes:
        found = super().name(kind, plain)
        if kind == b"content":
            self.content.add(found)
        return found


def pour(key: bytes, opened: dict[str, int], writer: BinaryIO, hands: Hands) -> dict[str, Any]:
    """Raises UnpackableError, OSError."""
    root, memory = opened["disk"], opened.get("memory")

    def put(name: bytes, sealed: bytes) -> None:
        frames.send(writer, frames.PIECE, name, sealed)

    noting = _Noting(key)
    first = Packer(noting, noting.content, put, hands).pack(root, memory)
    noting.content.clear()
    frames.send(writer, BODY, json.dumps(body_to_json(first)).encode())
    writer.flush()
    expected = iter(first.content)

    def put_next(name: bytes, sealed: bytes) -> None:
        if next(expected, None) != name:
            raise UnpackableError("the disk changed while it was read")
        put(name, sealed)

    again = Packer(DataKey(key), set(first.index), put_next, hands).pack(root, memory)
    if (again.index, again.content) != (first.index, first.content):
        raise UnpackableError("the disk changed while it was read")
    return {}


def look(manifest: Manifest) -> dict[str, Any]:
    """What the engine has to know before anything is made. Raises DamagedError."""
    body = manifest.body
    facts = {
        "size": min(body.size, len(body.content) * PIECE),
        "memory": {file.name: file.size for file in body.memory},
        "needs": body.needs,
        "record": body.record,
        "created_at": manifest.head.created_at,
    }
    if len(json.dumps(facts)) > _MOST_FACTS:
        raise DamagedError("what it says of its sandbox is longer than it may be")
    return facts


def keep_to(room: int) -> None:
    """What takes more memory ends with MemoryError."""
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
