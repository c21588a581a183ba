"""Mounts and loop devices by system call: what the pool stands on. All functions block and raise OSError."""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

# linux/mount.h
MS_NODEV, MS_NOATIME = 4, 1024
# linux/loop.h
_LOOP_CONFIGURE, _LOOP_GET_STATUS64, _LOOP_SET_CAPACITY, _LOOP_CTL_GET_FREE = 0x4C0A, 0x4C05, 0x4C07, 0x4C82
_LO_FLAGS_AUTOCLEAR, _LO_FLAGS_DIRECT_IO = 4, 16
_INFO_SIZE = 232
_ATTEMPTS = 32

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo."""

    target: Path
    kind: str
    source: str
    device: int


def mounted_at(target: Path) -> Mount | None:
    """The uppermost mount at exactly this path, in this process's mount namespace."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, source) = before.split(" "), after.split(" ")[:2]
        if _plain(fields[4]) == str(target):
            major, minor = fields[2].split(":")
            found = Mount(target, kind, _plain(source), os.makedev(int(major), int(minor)))
    return found


def _plain(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def mount(source: Path, target: Path, kind: str, flags: int, options: str) -> None:
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode()
    )
    _checked(result, str(target))


def unmount(target: Path) -> None:
    """EBUSY while something has files open in it."""
    _checked(_libc.umount2(os.fsencode(target), 0), str(target))


def exchange(one: Path, other: Path) -> None:
    """Both names change places at once: neither is missing at any moment, nor after a crash."""
    result = _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    _checked(result, str(one))


def sync_filesystem(folder: Path) -> None:
    """All that was written to the file system of this folder survives a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _checked(_libc.syncfs(fd), str(folder))
    finally:
        os.close(fd)


# loop devices


def loop_of(image: Path) -> Path | None:
    """The loop device that has this very file (by device and inode) behind it."""
    try:
        wanted = image.stat()
    except FileNotFoundError:
        return None
    for folder in Path("/sys/block").glob("loop*/loop"):
        device = Path("/dev", folder.parent.name)
        with contextlib.suppress(OSError):  # detached in between
            fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                info = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_INFO_SIZE))
            finally:
                os.close(fd)
            if struct.unpack_from("=2Q", info) == (wanted.st_dev, wanted.st_ino):
                return device
    return None


def attach(image: Path) -> tuple[Path, int]:
    """A loop device over the image, and a descriptor that keeps it: once the last of descriptor and mounts is gone, so
    is the device (autoclear). Direct I/O, where the file can: else everything would be cached twice."""
    existing = loop_of(image)
    if existing is not None:  # a second device over one file would corrupt it
        return existing, os.open(existing, os.O_RDWR | os.O_CLOEXEC)
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            device = Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, _loop_config(backing, image))
                return device, fd
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:  # somebody else took it meanwhile
                    raise
        raise OSError(errno.EBUSY, "no free loop device", str(image))
    finally:
        os.close(control)
        os.close(backing)


def _loop_config(backing: int, image: Path) -> bytes:
    """struct loop_config with its struct loop_info64."""
    name = os.fsencode(image)[:63]
    info = struct.pack("=5Q4I64s64x32x16x", 0, 0, 0, 0, 0, 0, 0, 0, _LO_FLAGS_AUTOCLEAR | _LO_FLAGS_DIRECT_IO, name)
    return struct.pack("=II", backing, 4096) + info + bytes(64)


def refresh_size(device: Path) -> None:
    """Tell the loop device that its file has grown."""
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _LOOP_SET_CAPACITY, 0)
    finally:
        os.close(fd)


def device_size(device: Path) -> int:
    """Bytes of a block device."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)
