"""The file that carries a sandbox, as a client handles it: its key, and a file that has its name only when it is whole. Shared by
the async and the sync SDK."""

import contextlib
import os
import secrets
from pathlib import Path

from sandkeep.sdk import errors

FILE_KEY = "Sandkeep-File-Key"
LAST = b"E\0\0\0\0"
"""What a file that is whole ends with."""


def fresh_file_key() -> str:
    return f"skf_{secrets.token_hex(32)}"


class PartFile:
    """Written as NAME.part beside its name, readable by nobody else. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(self._part, flags, 0o600), "wb")

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def finish(self) -> None:
        """Durable, and there under its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self._path)
        if os.name == "posix":
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def abort(self) -> None:
        """Nothing of it stays."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(FileNotFoundError):
            self._part.unlink()


class Tail:
    """Sees whether what went by was whole."""

    def __init__(self) -> None:
        self._last = b""

    def seen(self, data: bytes) -> None:
        self._last = (self._last + data)[-len(LAST) :]

    def check(self) -> None:
        """Raises ConnectionLost."""
        if self._last != LAST:
            raise errors.ConnectionLost("the file did not come to its end", hint="export it again")
