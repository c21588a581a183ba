"""What the btrfs driver promises beyond the contract: quota groups, nested subvolumes, the pool's image and mount."""

import contextlib
import errno
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from sandkeep.domain.errors import Busy, InvalidArgument, NoCapacity, Unavailable
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.drivers.disk import mounts
from sandkeep.drivers.disk.btrfs import BtrfsDisks, ioctl
from sandkeep.drivers.disk.btrfs.groups import recorded
from sandkeep.drivers.disk.btrfs.pool import Pool, PoolSettings, default_size, why_no_btrfs
from sandkeep.lib import process
from support.disks import MB, POOL_SIZE, Bench, bench, fill, pool_settings, remains
from support.instance import until

pytestmark = [pytest.mark.anyio, pytest.mark.requires("btrfs")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def on(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench("btrfs", tmp_path) as made:
        yield made


def _pool(on: Bench) -> Pool:
    assert isinstance(on.disks, BtrfsDisks)
    return on.disks.pool


def _free(on: Bench) -> int:
    found = os.statvfs(_pool(on).folder)
    return found.f_bavail * found.f_frsize


async def _groups_left(on: Bench) -> set[int]:
    """After the kernel's cleaner, which works at commits; it tells nobody when it has passed."""
    left = {0}
    with anyio.move_on_after(20):
        while left:
            await on.disks.discard_partial()
            left = set(ioctl.groups(_pool(on).folder).usage) - {5}
            await anyio.sleep(0.01)
    return left


def test_this_host_can() -> None:
    assert why_no_btrfs() is None


# quota groups


async def test_no_group_outlives_what_it_was_for(on: Bench) -> None:
    template = await on.template()
    for _ in range(3):
        sandbox = await on.sandbox(template_id=template)
        for _ in range(3):
            generation = new_id(IdKind.GENERATION)
            fill(on.disks.path(sandbox) / generation, MB)
            await on.disks.snapshot(sandbox, generation)
            await on.disks.restore(sandbox, generation)
        await on.disks.delete(sandbox)
    kept = await on.sandbox(template_id=template)
    await on.disks.delete_template(template)
    group = recorded(on.disks.path(kept).parent)
    await on.disks.discard_partial()
    assert group in ioctl.groups(_pool(on).folder).usage
    await on.disks.delete(kept)
    assert await _groups_left(on) == set()


async def test_group_numbers_survive_a_restart_and_are_never_shared(on: Bench) -> None:
    template = await on.template()
    numbers = []
    for _ in range(3):
        driver = on.again()
        await driver.open()
        for _ in range(2):
            sandbox = new_id(IdKind.SANDBOX)
            await driver.create(sandbox, template, 10 * MB)
            numbers.append(recorded(driver.path(sandbox).parent))
    assert None not in numbers
    assert len(set(numbers)) == 6
    await on.again().open()
    assert set(numbers) <= set(ioctl.groups(_pool(on).folder).usage)


async def test_a_template_from_a_disk_keeps_its_group_until_its_bytes_are_free(on: Bench) -> None:
    sandbox, template = await on.sandbox(), new_id(IdKind.TEMPLATE)
    fill(on.disks.path(sandbox) / "mine", 2 * MB)
    await on.disks.template_from_disk(template, sandbox)
    for one in (await on.disks.contents()).templates - {template}:
        await on.disks.delete_template(one)
    await on.disks.delete(sandbox)
    await on.disks.discard_partial()
    assert max(ioctl.groups(_pool(on).folder).usage.values()) >= 2 * MB
    await on.disks.delete_template(template)
    assert await _groups_left(on) == set()


# subvolumes that the root of a guest made


async def test_nested_subvolumes_are_charged_and_deleted(on: Bench, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("stays")
    sandbox, generation = await on.sandbox(10 * MB), new_id(IdKind.GENERATION)
    root = on.disks.path(sandbox)
    for parent, name in ((root, "one"), (root / "one", "two"), (root / "etc", "three"), (root / "one/two", "four")):
        ioctl.create_subvolume(parent, name)
    (root / "one/lure").symlink_to(outside)
    assert fill(root / "one/two/four/all", 20 * MB)[1] == errno.EDQUOT, "the sandbox's limit holds inside them too"
    await on.disks.snapshot(sandbox, generation)
    await on.disks.restore(sandbox, generation)
    assert list((root / "one").iterdir()) == [], "a clone holds an empty folder in a nested subvolume's place"
    assert fill(root / "all", 20 * MB)[1] == errno.EDQUOT, "the limit that was lifted meanwhile is back"
    await on.disks.set_limit(sandbox, 20 * MB)
    ioctl.create_subvolume(root, "again")
    assert fill(root / "again/all", 20 * MB)[1] == errno.EDQUOT
    await on.disks.delete(sandbox)
    assert not root.parent.exists()
    assert (outside / "precious").read_text() == "stays"
    assert await _groups_left(on) - set(ioctl.subvolume_ids(_pool(on).folder)) == set()


async def test_a_limit_that_a_crash_left_lifted_is_reapplied(on: Bench) -> None:
    sandbox = await on.sandbox(10 * MB)
    group = recorded(on.disks.path(sandbox).parent)
    assert group is not None
    ioctl.limit_group(_pool(on).folder, group, 1 << 40)
    await on.again().open()
    assert fill(on.disks.path(sandbox) / "all", 20 * MB)[1] == errno.EDQUOT


# crashes


async def test_what_a_killed_create_left_is_completed_or_discarded(on: Bench) -> None:
    template, one, two = await on.template(), new_id(IdKind.SANDBOX), new_id(IdKind.SANDBOX)
    for sandbox in (one, two):
        on.disks.path(sandbox).parent.mkdir()
    assert (await on.disks.contents()).disks == {}
    await on.disks.create(one, template, 10 * MB)
    assert await on.disks.discard_partial() == [f"sandboxes/{two}"]
    assert (await on.disks.contents()).disks == {one: one}


async def test_what_a_killed_restore_left_is_discarded(on: Bench) -> None:
    sandbox = await on.sandbox()
    home = on.disks.path(sandbox).parent
    ioctl.snapshot(home / "disk", home, "disk.new", group=recorded(home), readonly=False)
    assert await on.disks.discard_partial() == [f"sandboxes/{sandbox}/disk.new"]
    assert sorted(path.name for path in home.iterdir()) == ["disk"]


async def test_whole_generations_are_kept_although_their_disk_is_missing(on: Bench) -> None:
    sandbox, generation = await on.sandbox(), new_id(IdKind.GENERATION)
    (on.disks.path(sandbox) / "state").write_text("then")
    await on.disks.snapshot(sandbox, generation)
    ioctl.destroy_subvolume(_pool(on).folder, ioctl.subvolume_id(on.disks.path(sandbox)))
    assert await on.disks.discard_partial() == []
    found = await on.disks.contents()
    assert (found.disks, found.generations) == ({}, {generation: sandbox})
    await on.disks.restore(sandbox, generation)
    assert (on.disks.path(sandbox) / "state").read_text() == "then"


async def test_a_pool_full_of_small_files_still_deletes(on: Bench) -> None:
    sandbox = await on.sandbox(POOL_SIZE * 4)
    root = on.disks.path(sandbox)
    assert fill(root / "big", POOL_SIZE * 2)[1] == errno.ENOSPC
    stopped = next(stop for number in range(200_000) if (stop := fill(root / f"small-{number}", 1500)[1]))
    assert stopped == errno.ENOSPC
    await on.disks.delete(sandbox)
    await _groups_left(on)
    until(lambda: _free(on) > POOL_SIZE // 2, 60, wait=0.2)  # the kernel's cleaner has its own time


# the pool


async def test_the_pool_grows_while_in_use(on: Bench) -> None:
    pool, before = _pool(on), await on.disks.space()
    await pool.grow(POOL_SIZE + 256 * MB)
    await pool.grow(POOL_SIZE + 256 * MB)
    assert (await on.disks.space()).total - before.total == 256 * MB
    assert (await on.disks.space()).free > before.free
    with pytest.raises(InvalidArgument):
        await pool.grow(POOL_SIZE)


def _fill_with_small_files(folder: Path) -> None:
    for number in range(1 << 20):
        (folder / f"small-{number}").write_bytes(bytes(1500))


@pytest.mark.long
async def test_full_metadata_is_seen_although_there_is_room_for_data(on: Bench) -> None:
    """Data has taken all block groups, then half of it is deleted; small files fill the trees: statvfs tells nothing."""
    sandbox = await on.sandbox(POOL_SIZE)
    folder = on.disks.path(sandbox)
    big = 0
    with contextlib.suppress(OSError):
        while True:
            (folder / f"big-{big}").write_bytes(os.urandom(MB))
            big += 1
    for number in range(0, big, 2):
        (folder / f"big-{number}").unlink(missing_ok=True)
    await on.disks.sync()
    before = await on.disks.space()
    assert before.metadata_free is not None
    assert before.metadata_free > 20 * MB
    with pytest.raises(OSError, match="No space left"):
        _fill_with_small_files(folder)
    await on.disks.sync()
    after = await on.disks.space()
    assert after.metadata_free is not None
    assert after.metadata_free < 8 * MB
    assert after.free > 100 * MB, "what statvfs says"


async def test_growing_beyond_the_host_says_what_is_free(tmp_path: Path) -> None:
    pool = Pool(PoolSettings(folder=tmp_path / "pool", image=tmp_path / "pool.img", size=256 * MB))
    await pool.open()
    try:
        image = pool.settings.image
        assert image is not None
        assert image.stat().st_blocks * 512 >= 256 * MB, "allocated, also after mkfs"
        with pytest.raises(NoCapacity) as raised:
            await pool.grow(1 << 50)
        assert raised.value.details["free"] > 0
    finally:
        await pool.close()
    assert not remains(tmp_path)


async def test_a_grow_that_was_killed_is_completed_by_open(on: Bench) -> None:
    os.truncate(on.work / "pool.img", POOL_SIZE + 64 * MB)
    await on.again().open()
    assert (await on.disks.space()).total == POOL_SIZE + 64 * MB


async def test_unmounted_and_opened_again_it_holds_the_same(on: Bench) -> None:
    sandbox = await on.sandbox(10 * MB)
    await _pool(on).close()
    await _pool(on).close()
    assert not remains(on.work)
    await on.disks.open()
    assert (await on.disks.contents()).disks == {sandbox: sandbox}
    assert fill(on.disks.path(sandbox) / "all", 20 * MB)[1] == errno.EDQUOT
    assert (on.work / "pool").stat().st_mode & 0o777 == 0o700


async def test_a_pool_in_use_is_not_closed(on: Bench) -> None:
    sandbox = await on.sandbox()
    with (on.disks.path(sandbox) / "bytes").open("rb"):
        with pytest.raises(Busy):
            await _pool(on).close()
    assert (await on.disks.contents()).disks == {sandbox: sandbox}


async def test_a_mount_namespace_of_somebody_elses_does_not_hinder_closing(
    on: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template build of another instance has one for minutes."""
    monkeypatch.setattr("sandkeep.drivers.disk.btrfs.pool._LOOP_GONE_WITHIN", 0.1)
    begun = on.work / "begun"
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"touch {begun}; exec sleep 60"]
    )
    try:
        until(begun.exists)
        assert await _pool(on).close() is False
        assert mounts.mounted_at(on.work / "pool") is None
    finally:
        holder.kill()
        holder.wait()
    until(lambda: mounts.loop_of(on.work / "pool.img") is None)
    await on.disks.open()


async def test_an_image_that_is_attached_already_is_not_attached_twice(tmp_path: Path) -> None:
    pool = Pool(pool_settings(tmp_path))
    await pool.open()
    device = mounts.loop_of(tmp_path / "pool.img")
    assert device is not None
    with device.open("rb"):
        mounts.unmount(tmp_path / "pool")
        assert mounts.loop_of(tmp_path / "pool.img") == device
        await pool.open()
        assert mounts.loop_of(tmp_path / "pool.img") == device
        found = mounts.mounted_at(tmp_path / "pool")
        assert found is not None
        assert found.source == str(device)
    await pool.close()
    assert not remains(tmp_path)


async def test_what_somebody_else_mounted_is_refused(tmp_path: Path) -> None:
    settings = pool_settings(tmp_path)
    settings.folder.mkdir()
    mounts.mount(Path("none"), settings.folder, "tmpfs", 0, "size=1m")
    try:
        with pytest.raises(Unavailable, match="another file system"):
            await Pool(settings).open()
    finally:
        mounts.unmount(settings.folder)
    other = Pool(PoolSettings(settings.folder, image=tmp_path / "other.img", size=256 * MB, sparse=True))
    await other.open()
    try:
        with pytest.raises(Unavailable, match="not this pool's"):
            await Pool(settings).open()
    finally:
        await other.close()


async def test_quotas_are_never_enabled_on_what_we_did_not_make(tmp_path: Path) -> None:
    image, folder = tmp_path / "theirs.img", tmp_path / "pool"
    with image.open("wb") as file:
        file.truncate(256 * MB)
    await process.run(["mkfs.btrfs", "--quiet", "--label", "theirs", str(image)], timeout=60)
    pool = Pool(PoolSettings(folder, image=image))
    try:
        with pytest.raises(Unavailable, match="no simple quotas"):
            await pool.open()
        assert ioctl.quota_is_simple(folder) is None
        with pytest.raises(Unavailable, match="no simple quotas"):
            await Pool(PoolSettings(folder)).open()
        ioctl.enable_simple_quota(folder)  # as an operator may
        await Pool(PoolSettings(folder)).open()
    finally:
        await pool.close()
    with pytest.raises(Unavailable, match="not a mount point"):
        await Pool(PoolSettings(folder)).open()


async def test_a_device_is_formatted_only_when_blank(tmp_path: Path) -> None:
    image, folder = tmp_path / "device.img", tmp_path / "pool"
    with image.open("wb") as file:
        file.truncate(256 * MB)
    device, held = mounts.attach(image)
    try:
        await process.run(["mkfs.ext4", "-q", str(device)], timeout=60)
        pool = BtrfsDisks(PoolSettings(folder, device=device))
        with pytest.raises(Unavailable, match="cannot be formatted"):
            await pool.open()
        os.pwrite(held, bytes(4096), 0)
        for _ in range(2):
            await pool.open()
            await pool.begin_template(new_id(IdKind.TEMPLATE))
            assert len(await pool.discard_partial()) == 1
            await pool.close()
    finally:
        os.close(held)
    with pytest.raises(Unavailable, match="not a block device"):
        await Pool(PoolSettings(folder, device=image)).open()


def test_default_size_is_half_of_what_is_free_and_no_more_than_64_gib(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert 0 < default_size(tmp_path) <= min(free // 2 + 64 * MB, 64 << 30)
