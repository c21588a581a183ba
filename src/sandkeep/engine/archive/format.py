"""What an archive is made of, as values: manifests, and entries of the index. Pure; every count and length has a bound.

A manifest is one object: a head in the clear (whose it is, which in its chain, the hash of the one before), a sealed body
(what the pieces are and what they need), and a signature over both. An index is lines of JSON, one per name on the disk,
each after the folder that it is in.
"""

import hashlib
import hmac
import json
import re
import stat
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from sandkeep.engine.archive.keys import FORMATS, MAC, NAME, DamagedError, DataKey, sign

FORMAT = FORMATS[-1]
PIECE = 1 << 20
"""Bytes of content in one piece, at most."""
SEALED = PIECE + 4096
"""Bytes of a sealed piece, at most."""
MOST_ENTRIES = 4_000_000
MOST_PIECES = 8_000_000
DEEPEST = 2000
MOST_MANIFEST = 512 << 20
_MOST_HEAD = 4096
_MOST_BODY = 1 << 30
_MOST_SIZE = 1 << 62
_MOST_XATTRS, _MOST_XATTR = 128, 64 << 10
_MOST_MEMORY_FILES = 64
_MAGIC = b"sandkeep archive manifest\n"
_MEMORY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Head:
    """sequence: which of its chain, from 1; parent: hash of the one before, '' for the first."""

    sandbox: str
    project: str
    sequence: int
    parent: str
    created_at: float
    format: int = FORMAT


@dataclass(frozen=True)
class MemoryFile:
    """pieces: (number in the file, number in the table); those that are left out are zeros."""

    name: str
    size: int
    pieces: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Body:
    """index, content: names of pieces, content in the order of their numbers. size: bytes of content before it was packed.
    needs: what a restore of the memory needs. record: what the node knows of the sandbox."""

    entries: int
    size: int
    index: tuple[bytes, ...]
    content: tuple[bytes, ...]
    memory: tuple[MemoryFile, ...] = ()
    needs: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def pieces(self) -> set[str]:
        return {name.hex() for name in (*self.index, *self.content)}


@dataclass(frozen=True)
class Manifest:
    head: Head
    body: Body
    hash: str


def write_manifest(head: Head, body: Body, key: DataKey, signing: bytes) -> bytes:
    first = json.dumps(asdict(head), separators=(",", ":"), sort_keys=True).encode()
    sealed = key.seal_body(first, json.dumps(body_to_json(body), separators=(",", ":")).encode())
    whole = b"".join((_MAGIC, struct.pack(">I", len(first)), first, struct.pack(">I", len(sealed)), sealed))
    return whole + sign(signing, whole)


def is_name(text: str) -> bool:
    """Of a piece, as a key has it."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def hash_of(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()


def read_head(manifest: bytes, signing: bytes) -> Head:
    """Raises DamagedError for one that was not signed with this key."""
    head, _, _ = _split(manifest, signing)
    return head


def read_manifest(manifest: bytes, key: DataKey, signing: bytes) -> Manifest:
    """Raises DamagedError."""
    head, first, sealed = _split(manifest, signing)
    body = body_from_json(_json(key.open_body(first, sealed, _MOST_BODY), "the body of the manifest"))
    return Manifest(head, body, hash_of(manifest))


def _split(manifest: bytes, signing: bytes) -> tuple[Head, bytes, bytes]:
    whole, mac = manifest[:-MAC], manifest[-MAC:]
    if not whole.startswith(_MAGIC):
        raise DamagedError("this is no manifest of an archive")
    if not hmac.compare_digest(sign(signing, whole), mac):
        raise DamagedError("the manifest is damaged, or was signed with another key")
    first, rest = _counted(whole[len(_MAGIC) :], _MOST_HEAD)
    sealed, rest = _counted(rest, MOST_MANIFEST)
    if rest:
        raise DamagedError("the manifest is longer than it says")
    return _head_from_json(_json(first, "the head of the manifest")), first, sealed


def _counted(data: bytes, limit: int) -> tuple[bytes, bytes]:
    size = int.from_bytes(data[:4])
    if len(data) < 4 or size > min(limit, len(data) - 4):
        raise DamagedError("the manifest is cut short")
    return data[4 : 4 + size], data[4 + size :]


def _head_from_json(data: dict[str, Any]) -> Head:
    number = data.get("format")
    if number not in FORMATS:
        raise DamagedError(f"the archive is of format {number!r:.20}, and this version reads up to {FORMAT}")
    try:
        head = Head(**data)
    except TypeError as error:
        raise DamagedError("the head of the manifest is none") from error
    words = all(isinstance(word, str) and len(word) <= 64 for word in (head.sandbox, head.project, head.parent))
    if not words or not _whole(head.sequence, 1 << 40) or not isinstance(head.created_at, (int, float)):
        raise DamagedError("the head of the manifest is none")
    return head


def body_to_json(body: Body) -> dict[str, Any]:
    return {
        "entries": body.entries,
        "size": body.size,
        "index": b64encode(b"".join(body.index)).decode(),
        "content": b64encode(b"".join(body.content)).decode(),
        "memory": [{"name": one.name, "size": one.size, "pieces": one.pieces} for one in body.memory],
        "needs": body.needs,
        "record": body.record,
    }


def body_from_json(data: dict[str, Any]) -> Body:
    """Raises DamagedError."""
    try:
        content = _names(data["content"])
        body = Body(
            entries=data["entries"],
            size=data["size"],
            index=_names(data["index"]),
            content=content,
            memory=tuple(_memory_file(one, len(content)) for one in _list(data["memory"], _MOST_MEMORY_FILES)),
            needs=dict(data["needs"]),
            record=dict(data["record"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError("the body of the manifest is none") from error
    if not _whole(body.entries, MOST_ENTRIES) or not _whole(body.size, _MOST_SIZE):
        raise DamagedError("the body of the manifest has a count that cannot be")
    if len({one.name for one in body.memory}) != len(body.memory):
        raise DamagedError("the manifest names a memory file twice")
    return body


def _names(text: str) -> tuple[bytes, ...]:
    data = b64decode(text, validate=True)
    if len(data) % NAME or len(data) // NAME > MOST_PIECES:
        raise ValueError("names of pieces have 32 bytes each")
    return tuple(data[at : at + NAME] for at in range(0, len(data), NAME))


def _memory_file(data: dict[str, Any], table: int) -> MemoryFile:
    name, size = data["name"], data["size"]
    if not isinstance(name, str) or not _MEMORY_NAME.fullmatch(name) or not _whole(size, _MOST_SIZE):
        raise ValueError("this is no memory file")
    return MemoryFile(name, size, pieces_of(data["pieces"], size, table))


def pieces_of(data: Any, size: int, table: int) -> tuple[tuple[int, int], ...]:
    """Raises ValueError. table: how many pieces there are."""
    most, before, found = -(-size // PIECE), -1, []
    for number, piece in _list(data, MOST_PIECES):
        if not _whole(number, most - 1) or number <= before or not _whole(piece, table - 1):
            raise ValueError("a piece is where none can be")
        before = number
        found.append((number, piece))
    return tuple(found)


# -- entries of the index

_NONE: Mapping[str, bytes] = MappingProxyType({})
_compact = json.JSONEncoder(separators=(",", ":")).encode


class Entry(NamedTuple):
    """One name on the disk; a tuple, since there are many. parent: number of the folder that it is in (the root is 0, and has
    itself); link: the target of a symlink; same: the number of the entry that it is another name of; at: (piece, offset in
    it) of a small file; pieces: of a large one. kind: d, f, l, h (another name), p (FIFO), s (socket), c, b (device)."""

    parent: int
    name: bytes
    kind: str
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    link: bytes = b""
    same: int = 0
    device: tuple[int, int] = (0, 0)
    at: tuple[int, int] | None = None
    pieces: tuple[tuple[int, int], ...] = ()
    xattrs: Mapping[str, bytes] = _NONE


def write_entry(entry: Entry, numbers: Sequence[int] | None = None) -> bytes:
    """numbers: which of the table the pieces are that the entry names; None: the very ones."""
    data: dict[str, Any] = {"p": entry.parent, "n": _text(entry.name), "k": entry.kind}
    if entry.kind == "h":
        data["h"] = entry.same
    else:
        data |= {"m": entry.mode, "u": entry.uid, "g": entry.gid, "t": entry.mtime}
    if entry.kind == "f":
        data["s"] = entry.size
        if entry.at:
            data["a"] = entry.at if numbers is None else (numbers[entry.at[0]], entry.at[1])
        if entry.pieces:
            found = entry.pieces
            data["c"] = found if numbers is None else [(place, numbers[piece]) for place, piece in found]
    if entry.kind == "l":
        data["l"] = _text(entry.link)
    if entry.kind in "cb":
        data["d"] = entry.device
    if entry.xattrs:
        data["x"] = {name: b64encode(value).decode() for name, value in entry.xattrs.items()}
    return _compact(data).encode() + b"\n"


def read_entries(index: Iterator[bytes], entries: int, table: int) -> Iterator[Entry]:
    """Each checked against those before it. Raises DamagedError. index: pieces, each of whole lines."""
    kinds = bytearray()
    depths: dict[int, int] = {0: 0}
    for piece in index:
        for line in piece.splitlines():
            number = len(kinds)
            if number >= entries:
                raise DamagedError("the index has more entries than the manifest says")
            try:
                entry = _entry(_json(line, "an entry of the index"), number, kinds, table)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DamagedError(f"entry {number} of the index is none: {error}") from error
            if entry.kind == "d" and number:
                depths[number] = depths[entry.parent] + 1
                if depths[number] > DEEPEST:
                    raise DamagedError(f"entry {number} of the index lies deeper than {DEEPEST} folders")
            kinds += entry.kind.encode()
            yield entry
    if len(kinds) != entries:
        raise DamagedError("the index has fewer entries than the manifest says")


def _entry(data: dict[str, Any], number: int, kinds: bytearray, table: int) -> Entry:
    kind, parent, name = data["k"], data["p"], _bytes(data["n"], 255)
    if kind not in ("d", "f", "l", "h", "p", "s", "c", "b"):
        raise ValueError("it is of no kind that there is")
    if number == 0:
        if kind != "d" or name or parent != 0:
            raise ValueError("the first must be the root")
    elif not _whole(parent, number - 1) or kinds[parent] != ord("d"):
        raise ValueError("it lies in what is no folder")
    elif name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise ValueError("its name leads elsewhere")
    if kind == "h":
        same = data["h"]
        if not _whole(same, number - 1) or kinds[same] in b"dh":
            raise ValueError("it is another name of what is no file")
        return Entry(parent, name, kind, same=same)
    mode, uid, gid, mtime = data["m"], data["u"], data["g"], data["t"]
    if not _whole(mode, 0o7777) or not _whole(uid, 0xFFFFFFFE) or not _whole(gid, 0xFFFFFFFE):
        raise ValueError("its mode or owner cannot be")
    if type(mtime) is not int or abs(mtime) > _MOST_SIZE:
        raise ValueError("its time cannot be")
    size, at, link, device = 0, None, b"", (0, 0)
    pieces: tuple[tuple[int, int], ...] = ()
    if kind == "f":
        size = data["s"]
        if not _whole(size, _MOST_SIZE):
            raise ValueError("its size cannot be")
        if "c" in data:
            pieces = pieces_of(data["c"], size, table)
        if "a" in data:
            piece, offset = data["a"]
            if not _whole(piece, table - 1) or not _whole(offset, PIECE) or offset + size > PIECE or pieces:
                raise ValueError("its content is where none can be")
            at = piece, offset
    if kind == "l":
        link = _bytes(data["l"], 4095)
        if not link or b"\0" in link:
            raise ValueError("it leads nowhere")
    if kind in "cb":
        major, minor = data["d"]
        if not _whole(major, 0xFFFFFFFF) or not _whole(minor, 0xFFFFFFFF):
            raise ValueError("its device number cannot be")
        device = major, minor
    return Entry(
        parent, name, kind, mode, uid, gid, mtime, size, link, 0, device, at, pieces, _xattrs(data.get("x", {}))
    )


def _xattrs(data: dict[str, str]) -> Mapping[str, bytes]:
    if not data:
        return _NONE
    if len(data) > _MOST_XATTRS:
        raise ValueError("it has too many attributes")
    found = {name: b64decode(value, validate=True) for name, value in data.items()}
    if any(not kept_xattr(name) or len(name) > 255 or len(value) > _MOST_XATTR for name, value in found.items()):
        raise ValueError("it has an attribute that cannot be")
    return found


def kind_of(mode: int) -> str:
    """The letter of an entry."""
    for kind, is_one in (
        ("d", stat.S_ISDIR),
        ("f", stat.S_ISREG),
        ("l", stat.S_ISLNK),
        ("p", stat.S_ISFIFO),
        ("s", stat.S_ISSOCK),
        ("c", stat.S_ISCHR),
    ):
        if is_one(mode):
            return kind
    return "b"


def kept_xattr(name: str) -> bool:
    """What belongs to a file wherever it lies: not what a file system or a security module of this host notes on it."""
    return name.startswith("user.") or name in (
        "security.capability",
        "system.posix_acl_access",
        "system.posix_acl_default",
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes(text: str, limit: int) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > limit:
        raise ValueError("it is too long")
    return data


def _json(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data.decode())  # given bytes, it would look for their encoding
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{what} cannot be read") from error
    if not isinstance(found, dict):
        raise DamagedError(f"{what} cannot be read")
    return found


def _list(data: Any, most: int) -> list[Any]:
    if not isinstance(data, list | tuple) or len(data) > most:
        raise ValueError("it is no list, or too long")
    return list(data)


def _whole(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most
