"""The journal: one small file per operation under way. The intent is fsynced, each step is one write(), the end removes it.

What is left in the folder after a crash is exactly what was interrupted; recovery reads it, and with the ids in it can
compute what to undo or to finish, since every object on the host is named by id.
"""

import contextlib
import errno
import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandkeep.domain.ids import is_id
from sandkeep.engine.storage import writing
from sandkeep.lib.files import NO_FILE, read_plain, set_aside, sync_folder
from sandkeep.telemetry.log import log


@dataclass(frozen=True)
class Interrupted:
    """An operation that a crash interrupted: its intent and the steps that were begun."""

    operation: str
    verb: str
    subject: str
    facts: dict[str, Any] = field(default_factory=dict)
    steps: tuple[str, ...] = ()


class Entry:
    """The journal file of one operation."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd

    def step(self, name: str, **facts: Any) -> None:
        """About to do `name`: survives kill -9 from here on. Raises NoCapacity, StorageFailed: then do not do it."""
        with writing("the journal"):
            _append(self._fd, _line({"step": name, **facts}))

    def close(self) -> None:
        """The operation is settled and its record durable; the file is no longer needed."""
        os.close(self._fd)
        with contextlib.suppress(OSError):  # a disk that fails: recovery settles it once more, which changes nothing
            self._path.unlink(missing_ok=True)


class Journal:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, operation: str, verb: str, subject: str, **facts: Any) -> Entry:
        """Write the intent; durable when it returns. Raises NoCapacity, StorageFailed: nothing may then be done."""
        path = self._folder / f"{operation}.journal"
        with writing("the journal"):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                _append(fd, _line({"verb": verb, "subject": subject, "facts": facts}))
                os.fsync(fd)
                sync_folder(self._folder)
            except BaseException:
                Entry(path, fd).close()
                raise
        return Entry(path, fd)

    def entries(self) -> list[Interrupted]:
        """What is there now, for people to see; changes nothing, and so may be called beside a runner."""
        found = []
        for path in sorted(self._folder.glob("*.journal")):
            try:
                lines = _read(path)
            except OSError:
                continue  # ended meanwhile; recovery says what is no file
            if lines and "verb" in lines[0]:
                steps = tuple(str(line["step"]) for line in lines[1:] if "step" in line)
                found.append(Interrupted(path.stem, lines[0]["verb"], lines[0]["subject"], steps=steps))
        return found

    def interrupted(self) -> list[Interrupted]:
        """What a crash left, oldest first. A torn last line is dropped; a torn first line means that nothing was done."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = []
        for path in sorted(self._folder.glob("*.journal"), key=lambda p: p.lstat().st_mtime_ns):
            try:
                lines = _read(path)
            except OSError as error:
                if error.errno not in NO_FILE:
                    raise
                log("journal.torn", file=set_aside(path).name, error=str(error))
                continue
            if not lines or "verb" not in lines[0] or not is_id(path.stem):
                log("journal.torn", file=path.name)
                path.unlink(missing_ok=True)
                continue
            steps = tuple(str(line["step"]) for line in lines[1:] if "step" in line)
            head = lines[0]
            found.append(Interrupted(path.stem, head["verb"], head["subject"], head.get("facts", {}), steps))
        return found

    def forget(self, operation: str) -> None:
        (self._folder / f"{operation}.journal").unlink(missing_ok=True)


def _append(fd: int, line: bytes) -> None:
    """One write, whole: half a line would end the journal there for its reader."""
    if os.write(fd, line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _line(value: dict[str, Any]) -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _read(path: Path) -> list[dict[str, Any]]:
    lines = []
    for raw in read_plain(path).split(b"\n"):
        checksum, _, body = raw.partition(b" ")
        if len(checksum) != 8 or f"{zlib.crc32(body):08x}".encode() != checksum:
            break
        lines.append(json.loads(body))
    return lines
