"""Durable files: what was written here survives a power cut when the call returns."""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

NO_FILE = frozenset({errno.EINVAL, errno.ELOOP, errno.ENXIO})
"""What `open_plain` says of a folder, a link, a FIFO or a socket."""


def sync_folder(folder: Path) -> None:
    """fsync of a directory: makes the names in it durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_files(folder: Path, names: Iterable[str]) -> None:
    """fsync of these files, whoever wrote them, and of their folder. Raises OSError also when an earlier write failed."""
    for name in names:
        fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    sync_folder(folder)


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` by `data`, all or nothing, also across a power cut. Raises OSError; the old file then stands."""
    fresh = path.with_name(f".{path.name}.new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(fd, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise
    finally:
        os.close(fd)
    os.rename(fresh, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def written_durably(path: Path, mode: int = 0o600) -> Iterator[IO[bytes]]:
    """A file that the body writes, which replaces `path` when the body has ended well: all or nothing, as above."""
    fresh = path.with_name(f".{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(fresh, flags, mode), "wb") as file:
        try:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(fresh)
            raise
    os.rename(fresh, path)
    sync_folder(path.parent)


def write_json_durably(path: Path, value: Any, mode: int = 0o600) -> None:
    write_durably(path, json.dumps(value, separators=(",", ":"), sort_keys=True).encode(), mode)


def discard_unfinished(folder: Path) -> None:
    """Remove what a killed writer left in this folder beside the files that it meant. Only while nobody writes there."""
    for path in folder.glob(".*.new"):
        path.unlink(missing_ok=True)


def open_plain(path: Path) -> int:
    """A descriptor of a regular file, to read. Raises OSError, with one of NO_FILE for what else has its name: no link is
    followed, and no FIFO waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return fd


def read_plain(path: Path) -> bytes:
    """As `open_plain`, its content."""
    with open(open_plain(path), "rb") as file:
        return file.read()


def set_aside(path: Path) -> Path:
    """What has this name and is not to be understood gets another, beside it, for people to look at."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.unreadable-{number}")):
        number += 1
    os.rename(path, aside)
    sync_folder(path.parent)
    return aside


def remove_durably(path: Path) -> None:
    """Remove a file if it is there; gone also after a power cut."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def folder_fd(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
