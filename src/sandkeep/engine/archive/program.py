"""The program that packs and unpacks: takes its task by a pipe, gives up all that it does not need, then works.

Nothing that a sandbox or a stranger made is parsed anywhere else. See lib.confinement for what is left to it.
"""

import contextlib
import encodings.idna  # noqa: F401  # loaded while there are files
import errno
import json
import os
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO

from sandkeep.engine.archive import carry, frames
from sandkeep.engine.archive.format import FORMAT, PIECE, body_to_json, read_entries, read_manifest
from sandkeep.engine.archive.former import MOST_ENTRIES, Former
from sandkeep.engine.archive.hands import Hands
from sandkeep.engine.archive.keys import NAME, DamagedError, DataKey
from sandkeep.engine.archive.pack import Packer, UnpackableError
from sandkeep.engine.archive.unpack import Unpacker
from sandkeep.lib.confinement import confine

READ_ALL = ("dac_read_search",)
MAKE_ALL = ("chown", "dac_override", "fowner", "fsetid", "setfcap")
_MOST_SAID = 1000
_AHEAD = 48
"""Pieces that are asked for before they are needed."""


def main() -> int:
    """Exits with 0 when it has said how it ended."""
    reader, writer = os.fdopen(0, "rb", buffering=1 << 16), os.fdopen(1, "wb", buffering=1 << 16)
    kind, data = frames.receive(reader)
    if kind != frames.TASK:
        return 2
    task = json.loads(data)
    try:
        answer = _work(task, reader, writer)
    except DamagedError as error:
        said = {"message": str(error), "pieces": error.pieces[:_MOST_SAID]}
        frames.send(writer, frames.DAMAGED, json.dumps(said).encode())
    except MemoryError:
        said = {"message": "it takes more memory than it may", "pieces": ()}
        frames.send(writer, frames.DAMAGED, json.dumps(said).encode())
    except (UnpackableError, OSError) as error:
        failed = {"message": _words(error), "errno": getattr(error, "errno", None) or 0}
        frames.send(writer, frames.FAILED, json.dumps(failed).encode())
    else:
        frames.send(writer, frames.DONE, json.dumps(answer).encode())
    with contextlib.suppress(BrokenPipeError):
        writer.flush()
    return 0


def _work(task: dict[str, Any], reader: BinaryIO, writer: BinaryIO) -> dict[str, Any]:
    key, do = DataKey(bytes.fromhex(task["key"])), task["do"]
    started: list[Hands] = []
    shown = {name: (path, do in ("unpack", "rehearse")) for name, path in task["folders"].items()}
    if task["user"] is not None:
        kept = {"pack": READ_ALL, "pour": READ_ALL, "unpack": MAKE_ALL, "rehearse": MAKE_ALL}.get(do, ())
        user, group = task["user"]
        confine(shown, user, group, kept, start=lambda: started.append(Hands()))
    hands = started[0] if started else Hands()
    try:
        return _do(task, key, shown, hands, reader, writer)
    finally:
        hands.end()


def _do(
    task: dict[str, Any],
    key: DataKey,
    shown: dict[str, tuple[str, bool]],
    hands: Hands,
    reader: BinaryIO,
    writer: BinaryIO,
) -> dict[str, Any]:
    do = task["do"]
    opened = {
        name: os.open(f"/{name}" if task["user"] is not None else path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for name, (path, _) in shown.items()
    }
    memory = opened.get("memory")
    if "room" in task:
        carry.keep_to(int(task["room"]))
    if do == "pour":
        return carry.pour(bytes.fromhex(task["key"]), opened, writer, hands)
    if do == "pack":
        names = _names(bytes.fromhex(task["known"]))
        former = _former(task, key, names, reader, writer) if "former" in task else None
        packer = Packer(key, names, lambda name, sealed: frames.send(writer, frames.PIECE, name, sealed), hands, former)
        return body_to_json(packer.pack(opened["disk"], memory))
    kind, manifest = frames.receive(reader)
    assert kind == frames.MANIFEST
    believed = read_manifest(manifest, key, bytes.fromhex(task["signing"]))
    if do == "look":
        return carry.look(believed)
    unpacker = Unpacker(key, believed, lambda names: _fetch(names, reader, writer), hands)
    if do == "verify":
        kind, sure = frames.receive(reader)
        assert kind == frames.SURE
        unpacker.verify(_names(sure))
        return {}
    os.umask(0)
    if do == "rehearse":
        return {"left_out": unpacker.rehearse(opened["disk"], memory)}
    left_out, first = unpacker.unpack(opened["disk"], memory)
    return {"left_out": left_out, "first": first}


def _former(task: dict[str, Any], key: DataKey, known: set[bytes], reader: BinaryIO, writer: BinaryIO) -> Former | None:
    """None: what came is not it, too large, or of another format: then all is read."""
    kind, manifest = frames.receive(reader)
    assert kind == frames.MANIFEST
    try:
        believed = read_manifest(manifest, key, bytes.fromhex(task["signing"]))
        body = believed.body
        if body.entries > MOST_ENTRIES or believed.head.format != FORMAT:
            return None
        sealed = list(_fetch(body.index, reader, writer))
        pieces = (key.open(b"index", *piece, PIECE) for piece in zip(body.index, sealed, strict=True))
        entries = read_entries(pieces, body.entries, len(body.content))
        return Former(entries, body.content, task["former"]["first"], set(task["former"]["touched"]), known)
    except DamagedError:
        return None


def _names(joined: bytes) -> set[bytes]:
    return {joined[at : at + NAME] for at in range(0, len(joined), NAME)}


def _fetch(names: tuple[bytes, ...], reader: BinaryIO, writer: BinaryIO) -> Iterator[bytes]:
    """Each name is asked for some time before its piece is needed, and they come in that order."""
    asked: deque[bytes] = deque()
    rest = iter(names)
    for name in rest:
        asked.append(name)
        frames.send(writer, frames.WANT, name)
        if len(asked) < _AHEAD:
            continue
        yield _next(asked, reader, writer)
    while asked:
        yield _next(asked, reader, writer)


def _next(asked: deque[bytes], reader: BinaryIO, writer: BinaryIO) -> bytes:
    writer.flush()
    kind, data = frames.receive(reader)
    if kind != frames.PIECE or data[:NAME] != asked.popleft():
        raise DamagedError("another piece came than was asked for")
    return data[NAME:]


def _words(error: OSError | UnpackableError) -> str:
    if isinstance(error, OSError) and error.errno in {errno.EDQUOT, errno.ENOSPC}:
        return "there is no room for it"
    return str(error)
