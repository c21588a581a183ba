"""Durable files: what was written here survives a power cut when the call returns."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any


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
