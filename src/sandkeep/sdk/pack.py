"""Makes a tar stream of a local file tree, lazily: memory is one chunk and one folder listing, whatever the tree."""

import fnmatch
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sandkeep.sdk.errors import InvalidArgument

CHUNK = 1 << 20
_BLOCK = 512
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class _Skip(Exception):
    """An entry that is gone or cannot be read."""


def pack(
    root: Path,
    *,
    name: str | None = None,
    exclude: Sequence[str] = (),
    skipped: Callable[[str], None] = lambda name: None,
) -> Iterator[bytes]:
    """The tree under `root` as PAX tar, names relative to it. Regular files, folders and symlinks (as symlinks); what
    is anything else, or cannot be read, is reported to `skipped`. A root that is a file gives one entry, named `name`.

    `exclude`: shell patterns on the relative name or the base name. Raises InvalidArgument when there is no `root`.
    """
    try:
        single = not root.is_dir()
        if single:
            root.lstat()
    except OSError as error:
        raise InvalidArgument(f"{root} cannot be read: {error.strerror}") from error
    waiting = bytearray()
    names: Iterator[tuple[str, Path]] = iter([(name or root.name, root)]) if single else _walk(root, exclude, skipped)
    for member, path in names:
        try:
            for part in _entry(member, path):
                if len(part) >= CHUNK // 4:
                    if waiting:
                        yield bytes(waiting)
                        waiting.clear()
                    yield part
                else:
                    waiting += part
                    if len(waiting) >= CHUNK // 2:
                        yield bytes(waiting)
                        waiting.clear()
        except _Skip:
            skipped(member)
    waiting += bytes(2 * _BLOCK)
    yield bytes(waiting)


def _walk(root: Path, exclude: Sequence[str], skipped: Callable[[str], None]) -> Iterator[tuple[str, Path]]:
    stack = [iter(_listing(root))]
    prefixes = [""]
    while stack:
        found = next(stack[-1], None)
        if found is None:
            stack.pop()
            prefixes.pop()
            continue
        name = prefixes[-1] + found.name
        if any(fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(found.name, pattern) for pattern in exclude):
            continue
        path = Path(found.path)
        yield name, path
        if found.is_dir(follow_symlinks=False):
            try:
                stack.append(iter(_listing(path)))
            except OSError:
                skipped(name)
            else:
                prefixes.append(name + "/")


def _listing(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _entry(name: str, path: Path) -> Iterator[bytes]:
    """The header and the content of one entry. Raises _Skip only before the first byte."""
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            yield _header(name, found, link=os.readlink(path))
        elif stat.S_ISDIR(found.st_mode):
            yield _header(name + "/", found)
        elif stat.S_ISREG(found.st_mode):
            fd = os.open(path, os.O_RDONLY | _NOFOLLOW)
        else:
            raise _Skip
    except OSError as error:
        raise _Skip from error
    if stat.S_ISREG(found.st_mode):
        with open(fd, "rb", buffering=0) as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise _Skip
            yield _header(name, found)
            left = found.st_size
            while left:
                block = file.read(min(CHUNK, left))
                # A file that shrank while it was read: the header is out already, so its announced size is kept.
                block = block or bytes(min(CHUNK, left))
                left -= len(block)
                yield block
            yield bytes(-found.st_size % _BLOCK)


def _header(name: str, found: os.stat_result, link: str | None = None) -> bytes:
    import tarfile

    info = tarfile.TarInfo(name)
    info.mode = stat.S_IMODE(found.st_mode)
    # Whole seconds: a fraction would cost a PAX header of 1 KiB for each file.
    info.mtime = int(found.st_mtime)
    if link is not None:
        info.type, info.linkname = tarfile.SYMTYPE, link
    elif stat.S_ISDIR(found.st_mode):
        info.type = tarfile.DIRTYPE
    else:
        info.size = found.st_size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
