"""A disk driver on a small pool of its own in a temporary folder, for the contract suite and the drivers' own tests."""

import contextlib
import errno
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio

from sandkeep.contracts.disks import Disks
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.drivers.disk.btrfs import BtrfsDisks
from sandkeep.drivers.disk.btrfs.pool import PoolSettings
from sandkeep.drivers.disk.directory import DirectoryDisks, DirectorySettings
from sandkeep.drivers.fake.disks import FakeDisks

MB = 1 << 20
POOL_SIZE = 512 * MB
TEMPLATE_BYTES = 12 * MB
HOLES = 20 * MB


def pool_settings(work: Path, size: int = POOL_SIZE) -> PoolSettings:
    return PoolSettings(folder=work / "pool", image=work / "pool.img", size=size, sparse=True, reserve=24 * MB)


@dataclass
class Bench:
    """One driver with its pool. `again()` is what a restarted daemon would have: a second object on the same pool."""

    kind: str
    work: Path
    disks: Disks

    def again(self) -> Disks:
        return _driver(self.kind, self.work)

    async def template(self) -> str:
        template_id = new_id(IdKind.TEMPLATE)
        fill_root(await self.disks.begin_template(template_id))
        await self.disks.finish_template(template_id)
        return template_id

    async def sandbox(self, limit: int = 100 * MB, template_id: str | None = None) -> str:
        sandbox_id = new_id(IdKind.SANDBOX)
        await self.disks.create(sandbox_id, template_id or await self.template(), limit)
        return sandbox_id

    async def exhaust(self, sandbox_id: str) -> None:
        """Let the pool have no room. On btrfs by really writing it full through that sandbox's disk."""
        if isinstance(self.disks, FakeDisks):
            self.disks.full = True
        elif isinstance(self.disks, DirectoryDisks):
            self.disks = DirectoryDisks(DirectorySettings(self.work / "pool", reserve=1 << 60))
        else:
            await self.disks.set_limit(sandbox_id, POOL_SIZE * 4)
            assert fill(self.disks.path(sandbox_id) / "everything", POOL_SIZE * 2)[1] == errno.ENOSPC
            await self.disks.sync()


def fill_root(root: Path) -> None:
    """Something of every kind that a root file system holds."""
    (root / "etc").mkdir()
    (root / "etc/hostname").write_text("template\n")
    (root / "etc/link").symlink_to("/etc/passwd")
    (root / "etc/second-name").hardlink_to(root / "etc/hostname")
    (root / "bytes").write_bytes(os.urandom(TEMPLATE_BYTES))
    os.mkfifo(root / "pipe")
    with (root / "holes").open("wb") as file:
        file.truncate(HOLES)
    if os.geteuid() == 0:
        os.chown(root / "etc/hostname", 1000, 1000)
        os.setxattr(root / "etc/hostname", "user.note", b"kept")


def fill(path: Path, size: int) -> tuple[int, int]:
    """Write up to `size` random bytes. Returns what was written and the errno that stopped it, or 0."""
    done = 0
    try:
        with path.open("ab", buffering=0) as file:
            while done < size:
                done += file.write(os.urandom(min(MB, size - done)))
            os.fsync(file.fileno())
    except OSError as error:
        return done, error.errno or -1
    return done, 0


@contextlib.asynccontextmanager
async def bench(kind: str, work: Path) -> AsyncIterator[Bench]:
    """Closes the pool and checks that neither mount nor loop device stays."""
    driver = _driver(kind, work)
    await driver.open()
    made = Bench(kind, work, driver)
    try:
        yield made
    finally:
        if isinstance(driver, BtrfsDisks):
            await driver.close()
    with anyio.fail_after(
        180
    ):  # who enters a namespace of mounts elsewhere (a template's build) holds a copy of every mount
        while remains(work):
            await anyio.sleep(0.05)


def remains(work: Path) -> list[str]:
    """Mounts below this folder, and loop devices over files in it."""
    left = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{work}/" in line]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            name = backing.read_text().strip()
            left += [name] if name.startswith(f"{work}/") else []
    return left


def _driver(kind: str, work: Path) -> "BtrfsDisks | DirectoryDisks | FakeDisks":
    if kind == "btrfs":
        return BtrfsDisks(pool_settings(work))
    if kind == "dir":
        return DirectoryDisks(DirectorySettings(work / "pool", reserve=0))
    return FakeDisks(work / "pool")
