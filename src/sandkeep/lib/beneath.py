"""Opens what lies below a folder that strangers may have shaped, and nothing else: openat2(2), so that neither `..` nor a
link leads out, whoever changes the tree meanwhile. What is no regular file and no folder is looked at, never opened."""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_OPENAT2 = 437  # the same number on every architecture: asm-generic/unistd.h
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _IN_ROOT = 0x01, 0x02, 0x04, 0x08, 0x10  # linux/openat2.h
_FOLLOWING = _IN_ROOT | _NO_MAGICLINKS | _NO_XDEV
_STRAIGHT = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS | _NO_XDEV
_TRIES = 64
"""The kernel says EAGAIN when something was renamed beside a `..` that it followed."""
_STEP = 4000
"""Bytes of a path that one call is given: below PATH_MAX."""

LONGEST = 64 << 10
"""Bytes of a path: what is deeper is not found."""

_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _openat2(folder: int, path: bytes, flags: int, resolve: int) -> int:
    how = _How(flags | os.O_CLOEXEC, 0, resolve)
    for _ in range(_TRIES):
        fd = int(_libc.syscall(_OPENAT2, folder, path, ctypes.byref(how), ctypes.sizeof(how)))
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number), path)


@contextlib.contextmanager
def root(folder: Path) -> Iterator[int]:
    """A descriptor of the folder of ours below which the rest is opened. Raises OSError."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def handle(root: int, path: bytes, *, follow: bool) -> int:
    """A descriptor (O_PATH) to look at what this path names, which opens nothing. Links on the way are followed as if `root`
    were the root of all; `follow`: the last one, too. Raises OSError."""
    if len(path) > LONGEST or b"\0" in path:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if len(path) > _STEP:
        return exact(root, path)
    return _openat2(root, path or b".", os.O_PATH | (0 if follow else os.O_NOFOLLOW), _FOLLOWING)


def exact(root: int, path: bytes) -> int:
    """As `handle`, of what has this very path: without any link on the way, and of any length."""
    if b".." in path.split(b"/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    fd = os.dup(root)
    while parts:
        count, length = 0, 0
        while count < len(parts) and (not count or length + len(parts[count]) < _STEP):
            length += len(parts[count]) + 1
            count += 1
        step, parts = b"/".join(parts[:count]), parts[count:]
        try:
            deeper = _openat2(fd, step, os.O_PATH | os.O_NOFOLLOW, _STRAIGHT)
        finally:
            os.close(fd)
        fd = deeper
    return fd


def opened(handle: int) -> int:
    """A descriptor to read from, of the regular file or folder that a `handle` is of: of the very same one, and so none that
    took its name meanwhile. Raises OSError(EINVAL) for what is neither."""
    kind = os.fstat(handle).st_mode
    if stat.S_ISDIR(kind):
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if stat.S_ISREG(kind):
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    raise OSError(errno.EINVAL, "neither a file nor a folder")


def open_at(folder: int, name: bytes) -> int:
    """As `opened`, of one name in an open folder; a link is none. Raises OSError."""
    fd = _openat2(folder, name, os.O_PATH | os.O_NOFOLLOW, _STRAIGHT)
    try:
        return opened(fd)
    finally:
        os.close(fd)


def names(folder: int) -> Iterator[bytes]:
    """What is in an open folder, in no order."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield os.fsencode(entry.name)
