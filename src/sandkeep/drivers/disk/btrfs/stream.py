"""Reads a send stream of btrfs as it comes: which paths it touches. Layout: fs/btrfs/send.h, version 1, without file data.

The kernel writes it, and names in it are a guest's: sizes are bounded, and whatever does not fit raises StreamError.
"""

import struct
from dataclasses import dataclass, field

from sandkeep.contracts.disks import Touched

MOST_PATHS = 500_000
_MAGIC = b"btrfs-stream\0"
_VERSIONS = range(1, 4)
_HEAD = struct.Struct("<IHI")
_ATTRIBUTE = struct.Struct("<HH")
_LONGEST = 1 << 20
"""Bytes of one command: the kernel's own buffer has 64 KiB for one."""
_LONGEST_PATH = 64 << 10

_SUBVOL, _SNAPSHOT, _RENAME, _LINK, _END = 1, 2, 9, 10, 21
_WRITING = frozenset({15, 16, 17, 22, 23, 25})  # write, clone, truncate, update_extent, fallocate, encoded_write
_NOTING = frozenset({13, 14})  # set_xattr, remove_xattr
_COMMANDS = range(1, 27)
_PATH, _PATH_TO = 15, 16


class StreamError(ValueError):
    """It is no send stream, or too much of one."""


@dataclass
class TouchedPaths:
    """Feed it the stream, then ask for `found`.

    A path in it is one of the moment at which it stands in the stream: a folder above may have another name before or after. Each
    folder that is renamed is therefore taken as a whole, under its old and its new name, and so are the places for a
    while (`o257-8-0`) that new and displaced files have, which are in neither moment and so differ in nothing.
    """

    complete: bool = False
    _waiting: bytearray = field(default_factory=bytearray)
    _begun: bool = False
    _paths: set[bytes] = field(default_factory=set)
    _moved: set[bytes] = field(default_factory=set)
    _written: set[bytes] = field(default_factory=set)
    _noted: set[bytes] = field(default_factory=set)

    def feed(self, data: bytes) -> None:
        """Raises StreamError."""
        self._waiting += data
        position = 0
        if not self._begun:
            if len(self._waiting) < len(_MAGIC) + 4:
                return
            (version,) = struct.unpack_from("<I", self._waiting, len(_MAGIC))
            if not self._waiting.startswith(_MAGIC) or version not in _VERSIONS:
                raise StreamError("it does not begin as a send stream of a version that is known")
            self._begun, position = True, len(_MAGIC) + 4
        while not self.complete and len(self._waiting) - position >= _HEAD.size:
            length, command, _ = _HEAD.unpack_from(self._waiting, position)
            if length > _LONGEST or command not in _COMMANDS:
                raise StreamError(f"a command {command} of {length} bytes")
            end = position + _HEAD.size + length
            if len(self._waiting) < end:
                break
            self._command(command, bytes(self._waiting[position + _HEAD.size : end]))
            position = end
        del self._waiting[:position]

    def found(self) -> Touched:
        """Raises StreamError when the stream was cut."""
        if not self.complete:
            raise StreamError("it was cut")
        return Touched(frozenset(self._paths), frozenset(self._moved), frozenset(self._written), frozenset(self._noted))

    def _command(self, command: int, body: bytes) -> None:
        if command == _END:
            self.complete = True
            return
        if command in (_SUBVOL, _SNAPSHOT):
            return  # the name of the whole
        path, other = _paths_in(body)
        if path is None or (command == _RENAME and other is None):
            raise StreamError(f"a command {command} without a path")
        self._paths.add(path)
        if command == _RENAME and other is not None:
            self._paths.add(other)
            self._moved |= {path, other}
        elif command in _WRITING:
            self._written.add(path)
        elif command in _NOTING:
            self._noted.add(path)
        if len(self._paths) > MOST_PATHS:
            raise StreamError(f"more than {MOST_PATHS} paths")


def _paths_in(body: bytes) -> tuple[bytes | None, bytes | None]:
    path = other = None
    position = 0
    while position < len(body):
        if len(body) - position < _ATTRIBUTE.size:
            raise StreamError("an attribute is cut")
        kind, length = _ATTRIBUTE.unpack_from(body, position)
        position += _ATTRIBUTE.size
        if position + length > len(body):
            raise StreamError("an attribute is longer than its command")
        if kind in (_PATH, _PATH_TO):
            value = body[position : position + length]
            if length > _LONGEST_PATH or b"\0" in value:
                raise StreamError("a path that cannot be one")
            if kind == _PATH:
                path = value
            else:
                other = value
        position += length
    return path, other
