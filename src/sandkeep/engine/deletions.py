"""The ids that were deleted on this node, kept for 90 days: a control plane that was restored from an older copy still
lists them, and must hear that they are deleted, not lost.

One line `id at` for each, appended and fsynced before the sandbox's record goes; nothing is held in memory, since only
what the node does not know is looked up.
"""

import errno
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from sandkeep.contracts.clock import Clock
from sandkeep.domain.ids import IdKind, is_id
from sandkeep.lib.files import NO_FILE, read_plain, set_aside, write_durably
from sandkeep.telemetry.log import log

KEPT = 90 * 86400.0
_MOST = 1_000_000
_COMPACT_EVERY = 50_000


class Deletions:
    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._fd = -1
        self._added = 0

    def open(self) -> None:
        with self._lock:
            if os.path.lexists(self._path) and (self._path.is_symlink() or not self._path.is_file()):
                log("deletions.unreadable", "error", aside=set_aside(self._path).name)
            self._compact()

    def _compact(self) -> None:
        """Without what is old, and without the torn end of a crash, so that what is added begins a line."""
        since = self._clock.now() - KEPT
        kept = {sandbox_id: at for sandbox_id, at in self._lines() if at >= since}
        newest = list(kept.items())[-_MOST:]
        write_durably(self._path, b"".join(_line(sandbox_id, at) for sandbox_id, at in newest))
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._added = 0

    def add(self, sandbox_id: str) -> None:
        """Durable when it returns. Blocks for an fsync: call it from a thread."""
        with self._lock:
            if self._added >= _COMPACT_EVERY:
                self._compact()
            line = _line(sandbox_id, self._clock.now())
            if os.write(self._fd, line) != len(line):
                self._compact()  # half a line would spoil the next one
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._fd)
            self._added += 1

    def among(self, ids: Iterable[str]) -> dict[str, float]:
        """id -> when, of those that were deleted here. Works also before `open`."""
        wanted = set(ids)
        return {sandbox_id: at for sandbox_id, at in self._lines() if sandbox_id in wanted} if wanted else {}

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _lines(self) -> Iterable[tuple[str, float]]:
        try:
            data = read_plain(self._path)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            return
        for line in data.split(b"\n")[:-1]:  # after the last newline comes nothing, or what a crash tore
            sandbox_id, _, at = line.decode(errors="replace").partition(" ")
            if is_id(sandbox_id, IdKind.SANDBOX) and at.isdigit():
                yield sandbox_id, float(at)


def _line(sandbox_id: str, at: float) -> bytes:
    return f"{sandbox_id} {int(at)}\n".encode()
