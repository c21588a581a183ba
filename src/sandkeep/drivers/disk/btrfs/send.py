"""What differs between two read-only subvolumes, by the file system's own comparison of their trees: BTRFS_IOC_SEND without
file data, read from a pipe by this process and parsed as it comes.

A subvolume that is being sent cannot be removed (EPERM): whoever removes one does so while it is `given_up`, and the send ends.
"""

import contextlib
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sandkeep.contracts.disks import Touched
from sandkeep.domain.errors import Internal, NotFound, TooLarge
from sandkeep.drivers.disk.btrfs import ioctl
from sandkeep.drivers.disk.btrfs.stream import MOST_PATHS, StreamError, TouchedPaths

_SEND = 1 << 30 | 72 << 16 | 0x94 << 8 | 38  # _IOW(0x94, 38, struct btrfs_ioctl_send_args)
_NO_FILE_DATA = 0x1
_CHUNK = 256 << 10
_PIPE = 1 << 20
_PATIENCE = 10.0
"""Seconds in which a send that was told to end does: it looks up at its next write into the pipe."""


class Sends:
    """The sends that are under way. May be used by several threads at once."""

    def __init__(self) -> None:
        self._ending = threading.Condition()
        self._running: dict[Path, list[_Send]] = {}
        self._leaving: set[Path] = set()

    def touched(self, before: Path, after: Path) -> Touched | None:
        """Blocks. None: a path is too long for the file system to say. Raises NotFound when one of the two is gone, or goes
        meanwhile; TooLarge."""
        send = _Send(before, after)
        with self._ending:
            if {before, after} & self._leaving:
                raise _gone()
            for path in {before, after}:
                self._running.setdefault(path, []).append(send)
        try:
            return send.run()
        finally:
            with self._ending:
                for path in {before, after}:
                    self._running[path].remove(send)
                    if not self._running[path]:
                        del self._running[path]
                self._ending.notify_all()

    @contextlib.contextmanager
    def given_up(self, path: Path) -> Iterator[None]:
        """The body removes this subvolume: what reads it is ended first, and nothing begins to. Blocks."""
        with self._ending:
            self._leaving.add(path)
            for send in self._running.get(path, ()):
                send.interrupted = True
            self._ending.wait_for(lambda: path not in self._running, _PATIENCE)
        try:
            yield
        finally:
            with self._ending:
                self._leaving.discard(path)


class _Send:
    def __init__(self, before: Path, after: Path) -> None:
        self._before, self._after = before, after
        self.interrupted = False
        self._failure: OSError | None = None

    def run(self) -> Touched | None:
        paths, trouble = TouchedPaths(), None
        try:
            parent = ioctl.subvolume_id(self._before)
            source = os.open(self._after, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise self._failed(error) from error
        reading, writing = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE)
        sender = threading.Thread(target=self._send, args=(source, writing, parent), daemon=True)
        sender.start()
        try:
            while not self.interrupted and (data := os.read(reading, _CHUNK)):
                paths.feed(data)
        except StreamError as error:
            trouble = error
        finally:
            os.close(reading)  # a sender that still writes gets EPIPE
            sender.join()
        if self.interrupted:
            raise _gone()
        if self._failure is not None and trouble is None:
            if self._failure.errno == errno.ENAMETOOLONG:
                return None
            raise self._failed(self._failure) from self._failure
        try:
            if trouble:
                raise trouble
            return replace(paths.found(), names=self._names)
        except StreamError as error:
            if str(MOST_PATHS) in str(error):
                raise TooLarge(f"there are {error} between the two", hint="compare two that are nearer") from error
            raise Internal(f"The file system's difference cannot be read: {error}") from error

    def _names(self, inode: int) -> list[bytes]:
        try:
            return ioctl.names_of_inode(self._after, inode)
        except OSError:  # it is gone, as whoever compares will see
            return []

    def _send(self, source: int, writing: int, parent: int) -> None:
        """struct btrfs_ioctl_send_args. In a thread of its own: the kernel writes until all is read."""
        try:
            fcntl.ioctl(source, _SEND, bytearray(struct.pack("=qQQQQI28x", writing, 0, 0, parent, _NO_FILE_DATA, 0)))
        except OSError as error:
            if error.errno != errno.EPIPE:
                self._failure = error
        finally:
            os.close(writing)
            os.close(source)

    def _failed(self, error: OSError) -> Internal | NotFound:
        # EPERM: it is not read-only, or is on its way out
        if error.errno in (errno.ENOENT, errno.EPERM) and not (self._before.exists() and self._after.exists()):
            return _gone()
        return Internal(f"The pool failed at compare: {error.strerror or error}", errno=error.errno or 0)


def _gone() -> NotFound:
    return NotFound("what is compared was deleted meanwhile", hint="compare what is still there")
