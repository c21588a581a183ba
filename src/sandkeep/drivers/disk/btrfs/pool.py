"""The btrfs file system that holds the disks: an image file of our own, an operator's device, or a mount of his.

The engine opens the disk driver before the runtimes: the mount made here is then below the shared mount that a
runtime's private mount namespace copies. Never unmounted by a dying daemon; `open()` adopts what is mounted.
"""

import contextlib
import errno
import os
import shutil
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path

import anyio.to_thread

from sandkeep.domain.errors import Busy, InvalidArgument, NoCapacity, Unavailable
from sandkeep.drivers.disk import mounts
from sandkeep.drivers.disk.btrfs import ioctl
from sandkeep.lib import process

LABEL = "sandkeep"
"""The label of a file system that we made: quotas are enabled on no other."""
LARGEST_DEFAULT = 64 << 30
SMALLEST = 256 << 20
NODE_SIZE = 8192
"""Bytes of a tree node. A clone touches everything that the root node of its tree points to, up to 493 leaves with the
16 KiB that mkfs would take: the clone of a tree that just fits two levels then took 4 ms, with 8 KiB 1.7 (7763 files;
where 16 KiB give three levels, both 1.7). With 4 KiB the trees get deep, and everything else slower."""
_MKFS_TIMEOUT = 300.0
_LOOP_GONE_WITHIN = 5.0
_MIB = 1 << 20


@dataclass(frozen=True)
class PoolSettings:
    """Either `image` (a file that we make, format and mount), or `device` (a block device, blank or formatted by us
    earlier), or neither: then `folder` must be the mount point of a btrfs that has simple quotas on."""

    folder: Path
    image: Path | None = None
    device: Path | None = None
    size: int | None = None
    """Bytes of a new image. None: half the free space, at most 64 GiB."""
    sparse: bool = False
    """Do not allocate the image, and give freed space back to the host: for tests. The host may then be full first."""
    reserve: int = 64 << 20
    """Bytes of the pool that stay free: below, nothing new is made, while delete and restore go on working."""


def why_no_btrfs() -> str | None:
    """None when this host can hold a btrfs pool, else the reason in a sentence. Reads only; for doctor and wiring."""
    if not kernel_supports_simple_quota():
        return "The kernel has no btrfs with simple quotas (it needs 6.7 or newer)."
    if shutil.which("mkfs.btrfs") is None:
        return "mkfs.btrfs is missing: install btrfs-progs."
    return None


def kernel_supports_simple_quota() -> bool:
    if Path("/sys/fs/btrfs/features").is_dir():
        return Path("/sys/fs/btrfs/features/simple_quota").exists()
    # Not loaded yet: mounting loads the module. A kernel without one at all is met by open().
    release = os.uname().release.split("-", 1)[0].split(".")
    known = Path("/lib/modules", os.uname().release, "kernel/fs/btrfs").is_dir()
    return known and tuple(int(part) for part in release[:2]) >= (6, 7)


def default_size(folder: Path) -> int:
    """The smaller of half the free space around `folder` and 64 GiB, in bytes."""
    free = shutil.disk_usage(folder).free
    return min(free // 2, LARGEST_DEFAULT) // _MIB * _MIB


class Pool:
    """One pool. `open`, `grow` and `close` are idempotent; only one process may call them at a time."""

    def __init__(self, settings: PoolSettings) -> None:
        if settings.image is not None and settings.device is not None:
            raise InvalidArgument("A pool is an image file or a device, not both")
        self.settings = replace(settings, folder=Path(os.path.abspath(settings.folder)))

    @property
    def folder(self) -> Path:
        return self.settings.folder

    async def open(self) -> None:
        """Make, mount and check the pool. Raises Unavailable."""
        try:
            if await anyio.to_thread.run_sync(mounts.mounted_at, self.folder) is None:
                await self._format()
                await anyio.to_thread.run_sync(self._mount)
            await anyio.to_thread.run_sync(self._check)
        except OSError as error:
            raise Unavailable(f"The pool cannot be opened: {error.strerror or error}", path=str(self.folder)) from error

    async def _format(self) -> None:
        image, device = self.settings.image, self.settings.device
        if image is not None and not image.exists():
            image.parent.mkdir(parents=True, exist_ok=True)
            fresh = image.with_name(f".{image.name}.new")  # named `image` only once it is whole
            await anyio.to_thread.run_sync(self._allocate, fresh)
            await self._mkfs(fresh)
            fresh.rename(image)
        elif device is not None and await anyio.to_thread.run_sync(_is_blank, device):
            await self._mkfs(device)

    def _allocate(self, fresh: Path) -> None:
        size = self.settings.size or default_size(fresh.parent)
        if size < SMALLEST:
            raise Unavailable("There is too little free space for a pool", free=shutil.disk_usage(fresh.parent).free)
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _size_file(fd, size, self.settings.sparse)
        except OSError:
            fresh.unlink()
            raise
        finally:
            os.close(fd)

    async def _mkfs(self, target: Path) -> None:
        # Without --nodiscard mkfs would punch the allocation out again. Without --force it refuses other people's data.
        keep = () if self.settings.sparse else ("--nodiscard",)
        argv = ["mkfs.btrfs", "--quiet", *keep, "--nodesize", str(NODE_SIZE), "--label", LABEL, str(target)]
        try:
            await process.run(argv, timeout=_MKFS_TIMEOUT)
        except (process.ProgramError, process.ProgramTimeoutError, process.ProgramMissingError) as error:
            raise Unavailable(f"The pool cannot be formatted: {error}", hint="Is btrfs-progs installed?") from error

    def _mount(self) -> None:
        image, source = self.settings.image, self.settings.device
        if image is None and source is None:
            raise Unavailable(
                f"{self.folder} is not a mount point", hint="Mount your btrfs there, or give an image or a device."
            )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        held = None
        if image is not None:
            source, held = mounts.attach(image)
        assert source is not None
        try:
            discard = "discard=async" if self.settings.sparse else "nodiscard"
            flags = mounts.MS_NOATIME | mounts.MS_NODEV  # not nosuid: runc's guests run sudo from here
            # commit=5 bounds for how long freed quota stays charged.
            mounts.mount(source, self.folder, "btrfs", flags, f"commit=5,{discard}")
        finally:
            if held is not None:
                os.close(held)

    def _check(self) -> None:
        mount = mounts.mounted_at(self.folder)
        if mount is None or mount.kind != "btrfs":
            raise Unavailable(f"{self.folder} holds another file system", kind=mount.kind if mount else "none")
        expected = self.settings.device
        if self.settings.image is not None:
            expected = mounts.loop_of(self.settings.image)
        if (self.settings.image or self.settings.device) and not _same_device(expected, Path(mount.source)):
            raise Unavailable(f"{self.folder} is mounted from {mount.source}, which is not this pool's")
        simple = ioctl.quota_is_simple(self.folder)
        if simple is None and ioctl.label(self.folder) == LABEL:
            ioctl.enable_simple_quota(self.folder)
            ioctl.sync(self.folder)
        elif not simple:
            raise Unavailable(
                f"{self.folder} has no simple quotas, and we did not make it",
                hint="Enable them yourself (btrfs quota enable --simple), or give a blank device or an image file.",
            )
        if self.settings.image is not None:
            self._fill_device(Path(mount.source))  # a crash in the middle of grow()
        self.folder.chmod(0o700)

    async def grow(self, size: int) -> None:
        """Make the image `size` bytes large, or let a grown device be used (size is then ignored). Raises NoCapacity
        when the host has not the space, InvalidArgument when the pool is larger already."""
        await anyio.to_thread.run_sync(self._grow, size)

    def _grow(self, size: int) -> None:
        image, mount = self.settings.image, mounts.mounted_at(self.folder)
        if mount is None:
            raise Unavailable("The pool is not open")
        if image is None:
            ioctl.resize_to_device(self.folder)
            return
        if size < image.stat().st_size:
            raise InvalidArgument("A pool cannot shrink", size=image.stat().st_size)
        fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        try:
            _size_file(fd, size, self.settings.sparse)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise
            free = shutil.disk_usage(image.parent).free
            raise NoCapacity("The host has too little space to grow the pool", free=free) from error
        finally:
            os.close(fd)
        self._fill_device(Path(mount.source))

    def _fill_device(self, device: Path) -> None:
        assert self.settings.image is not None
        if mounts.device_size(device) + _MIB <= self.settings.image.stat().st_size:
            mounts.refresh_size(device)
        found = os.statvfs(self.folder)
        if found.f_blocks * found.f_frsize + _MIB <= mounts.device_size(device):
            ioctl.resize_to_device(self.folder)

    async def close(self) -> bool:
        """Unmount, and wait until the loop device is free. False: somebody's mount namespace (a template build, another
        instance's start) still holds a copy of the mount, and with it the room of the image until it ends. Raises Busy
        while something uses the pool. What an operator mounted himself stays mounted."""
        if self.settings.image is None and self.settings.device is None:
            return True
        return await anyio.to_thread.run_sync(self._close)

    def _close(self) -> bool:
        if mounts.mounted_at(self.folder) is not None:
            try:
                mounts.unmount(self.folder)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise Busy("Something still uses the pool", path=str(self.folder)) from error
        # No event tells that a loop device is free; copies of the mount in dying namespaces hold it up to a second.
        deadline = time.monotonic() + _LOOP_GONE_WITHIN
        while self.settings.image is not None and mounts.loop_of(self.settings.image) is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def _size_file(fd: int, size: int, sparse: bool) -> None:
    if sparse:
        os.ftruncate(fd, max(size, os.fstat(fd).st_size))
    else:
        os.posix_fallocate(fd, 0, size)


def _is_blank(device: Path) -> bool:
    """No magic of btrfs at its place. Whether there is anything else, mkfs looks itself, and refuses."""
    if not stat.S_ISBLK(device.stat().st_mode):
        raise Unavailable(f"{device} is not a block device")
    with device.open("rb") as file:
        file.seek(0x10040)  # the first superblock at 64 KiB, its magic at 0x40
        return file.read(8) != b"_BHRfS_M"


def _same_device(one: Path | None, other: Path) -> bool:
    try:
        return one is not None and one.stat().st_rdev == other.stat().st_rdev
    except FileNotFoundError:
        return False
