"""An archive that reads only what changed since the wake is as good as one that reads everything: on btrfs, the real program."""

import os
import pwd
import random
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from sandkeep.domain.errors import Conflict
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.drivers.fake.objects import FakeObjects
from sandkeep.engine.archive.keys import KeyRing
from sandkeep.engine.archive.vault import Chain, Since, Unpacked, Vault
from sandkeep.engine.archive.worker import Folders, Worker
from support.disks import MB, Bench, bench
from support.trees import CAPABILITY, fill_tree, tree

pytestmark = [pytest.mark.anyio, pytest.mark.requires("btrfs")]

NOBODY = pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid
PROJECT = new_id(IdKind.PROJECT)
LIMIT = 200 * MB


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Traveller:
    """A sandbox's disk, its archive, and what its record would hold."""

    def __init__(self, on: Bench) -> None:
        self.on = on
        self.id = new_id(IdKind.SANDBOX)
        self.objects = FakeObjects()
        self.vault = Vault(self.objects, KeyRing(on.work / "keys"), Worker(NOBODY))
        self.chain: Chain = self.vault.new_chain(self.id, PROJECT)
        self.mark, self.moment = "", 0
        self.unpacked = Unpacked(0)
        self.asked: list[str] = []
        """Pieces that were read from the store by the last call."""

    @property
    def root(self) -> Path:
        return self.on.disks.path(self.id)

    async def archive(self) -> bool:
        """Whether it could tell what changed."""
        since = None
        if self.mark:
            touched = await self.on.disks.inodes_since(self.id, self.mark, self.moment)
            if touched is not None:
                assert self.unpacked.first is not None
                since = Since(self.unpacked.first, self.unpacked.stored, touched)
        get = self.objects.get
        self.asked = []

        async def noted(key: str, limit: int) -> bytes:
            self.asked.append(key)
            return await get(key, limit)

        self.objects.get = noted  # type: ignore[method-assign]
        try:
            self.chain, body = await self.vault.write(
                self.id, PROJECT, self.chain, Folders(self.root), {}, {}, 1.0, since
            )
        finally:
            self.objects.get = get  # type: ignore[method-assign]
        await self.vault.prune(self.id, [self.chain], body.pieces())
        return since is not None

    async def wake(self) -> None:
        await self.on.disks.drop_disk(self.id)
        fresh = await self.on.disks.begin_disk(self.id, LIMIT)
        self.unpacked = await self.vault.unpack(self.id, PROJECT, self.chain, Folders(fresh))
        await self.on.disks.finish_disk(self.id)
        assert self.unpacked.first is not None
        assert self.unpacked.stored
        self.mark = new_id(IdKind.GENERATION)
        moment = await self.on.disks.mark(self.id, self.mark)
        assert moment is not None
        self.moment = moment

    async def pieces(self) -> set[str]:
        return (await self.vault.read(self.id, PROJECT, self.chain)).body.pieces()

    def read_back(self) -> set[str]:
        return {key.rpartition("/")[2] for key in self.asked if "/pieces/" in key}

    async def pause(self) -> str:
        """As a pause and a resume do it: the disk goes on from a clone of a generation that is dropped then."""
        generation = new_id(IdKind.GENERATION)
        await self.on.disks.snapshot(self.id, generation)
        await self.on.disks.restore(self.id, generation)
        await self.on.disks.drop_generation(self.id, generation)
        return generation


@pytest.fixture
async def traveller(tmp_path: Path) -> AsyncIterator[Traveller]:
    async with bench("btrfs", tmp_path) as on:
        made = Traveller(on)
        fresh = await on.disks.begin_disk(made.id, LIMIT)
        fill_tree(fresh)
        os.mknod(fresh / "device", 0o600 | 0o020000, os.makedev(1, 3))  # is recorded, and has no inode when it is woken
        await on.disks.finish_disk(made.id)
        assert not await made.archive()
        await made.wake()
        yield made


async def test_what_did_not_change_is_not_fetched_again(traveller: Traveller) -> None:
    before = await traveller.pieces()
    (traveller.root / "home/new").write_bytes(os.urandom(3 * MB))
    (traveller.root / "home/small-7").write_text("changed")
    expected = tree(traveller.root)
    assert await traveller.archive()
    fresh = await traveller.pieces() - before
    assert 4 <= len(fresh) <= 8
    assert traveller.read_back() - before == fresh, "what was put is read back"
    assert len(traveller.read_back() & before) == 1, "and of the rest the former index alone"
    await traveller.wake()
    assert tree(traveller.root) == expected


async def test_what_did_not_change_is_not_read(traveller: Traveller) -> None:
    """A change that nobody tells the packer of, and that neither size nor time show: so it is not in the archive."""
    woken = tree(traveller.root)
    path = traveller.root / "home/large"
    found = path.stat()
    path.write_bytes(os.urandom(found.st_size))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert traveller.unpacked.first is not None
    since = Since(traveller.unpacked.first, traveller.unpacked.stored, frozenset())
    folders = Folders(traveller.root)
    traveller.chain, _ = await traveller.vault.write(
        traveller.id, PROJECT, traveller.chain, folders, {}, {}, 1.0, since
    )
    await traveller.wake()
    assert tree(traveller.root) == woken


async def test_after_a_pause_it_still_knows(traveller: Traveller) -> None:
    await traveller.pause()
    (traveller.root / "home/after").write_text("the pause")
    await traveller.pause()
    expected = tree(traveller.root)
    assert await traveller.archive()
    await traveller.wake()
    assert tree(traveller.root) == expected


async def test_after_a_rollback_to_before_the_wake_everything_is_read(traveller: Traveller) -> None:
    """Its inodes have the same numbers, and are older than the wake: nothing but the note tells that they are others."""
    kept = new_id(IdKind.GENERATION)
    await traveller.on.disks.snapshot(traveller.id, kept)
    for name in ("home/large", "home/small-8"):
        found = (traveller.root / name).stat()
        (traveller.root / name).write_bytes(os.urandom(found.st_size))
        os.utime(traveller.root / name, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert await traveller.archive()
    changed = tree(traveller.root)
    await traveller.wake()
    assert tree(traveller.root) == changed
    await traveller.on.disks.restore(traveller.id, kept)
    before = tree(traveller.root)
    assert before != changed
    assert not await traveller.archive()
    await traveller.wake()
    assert tree(traveller.root) == before


@pytest.mark.parametrize("damage", ["gone", "cut", "index"])
async def test_a_piece_that_went_missing_is_put_again_while_the_disk_is_here(traveller: Traveller, damage: str) -> None:
    body = (await traveller.vault.read(traveller.id, PROJECT, traveller.chain)).body
    name = (body.index if damage == "index" else body.content)[0].hex()
    (key,) = [key for key in traveller.objects.held if key.endswith(name)]
    if damage == "cut":
        traveller.objects.held[key] = traveller.objects.held[key][:-1]
        with pytest.raises(Conflict, match=r"refused: the piece .* is damaged"):
            await traveller.archive()  # not as large as it was: all is read back, and what is damaged is removed
    else:
        del traveller.objects.held[key]
    expected = tree(traveller.root)
    assert await traveller.archive()
    assert damage == "cut" or name in traveller.read_back(), "what was put again is read back"
    await traveller.wake()
    assert tree(traveller.root) == expected


async def test_what_rots_and_keeps_its_size_is_found_by_a_rehearsal(traveller: Traveller) -> None:
    """Not by the archive after the wake, which reads back what it put."""
    body = (await traveller.vault.read(traveller.id, PROJECT, traveller.chain)).body
    (key,) = [key for key in traveller.objects.held if key.endswith(body.content[0].hex())]
    good = traveller.objects.held[key]
    traveller.objects.held[key] = good[:-1] + bytes([good[-1] ^ 1])
    (traveller.root / "home/new").write_text("new")
    expected = tree(traveller.root)
    assert await traveller.archive()
    scratch = traveller.on.work / "scratch"
    scratch.mkdir()
    with pytest.raises(Conflict, match=r"refused: the piece .* is damaged"):
        await traveller.vault.rehearse(traveller.id, PROJECT, traveller.chain, Folders(scratch))
    traveller.objects.held[key] = good
    await traveller.wake()
    assert tree(traveller.root) == expected


class Changing:
    """Random changes to a tree, by a seed."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.chance = root, random.Random(seed)
        self.kinds: list[Callable[[], None]] = [
            self.write, self.write, self.rewrite_with_its_time, self.cut, self.grow, self.hole, self.punch, self.replace,
            self.rename, self.rename_folder, self.swap, self.exchange_folders, self.link, self.unlink, self.unlink_folder,
            self.mode, self.owner, self.note, self.times, self.folder, self.symlink, self.pipe, self.between_small_and_large,
        ]  # fmt: skip

    def run(self, count: int) -> None:
        for _ in range(count):
            self.chance.choice(self.kinds)()

    def _files(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if path.is_dir() and not path.is_symlink())

    def _file(self) -> Path:
        return self.chance.choice(self._files() or [self._made(10)])

    def _folder(self) -> Path:
        return self.chance.choice([self.root, *self._folders()])

    def _name(self) -> Path:
        return self._folder() / f"n{self.chance.randrange(10**9)}"

    def _size(self) -> int:
        return self.chance.choice([0, 1, 500, 5000, 256 << 10, (256 << 10) + 1, MB, MB + 7, 3 * MB])

    def _made(self, size: int) -> Path:
        path = self._name()
        path.write_bytes(self.chance.randbytes(size))
        return path

    def write(self) -> None:
        self._made(self._size())

    def rewrite_with_its_time(self) -> None:
        """Neither its size nor its time tell."""
        path = self._file()
        found = path.stat()
        with path.open("r+b") as file:
            file.write(self.chance.randbytes(min(found.st_size, 700)))
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))

    def cut(self) -> None:
        path = self._file()
        os.truncate(path, path.stat().st_size // 2)

    def grow(self) -> None:
        with self._file().open("ab") as file:
            file.write(self.chance.randbytes(3000))

    def hole(self) -> None:
        with self._file().open("r+b") as file:
            file.truncate(file.seek(0, os.SEEK_END) + 2 * MB)
            file.seek(0, os.SEEK_END)
            file.write(b"after")

    def punch(self) -> None:
        """Zeros in its place, of the same size and time."""
        path = self._file()
        found = path.stat()
        with path.open("r+b") as file:
            file.write(bytes(found.st_size))
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))

    def replace(self) -> None:
        path = self._file()
        fresh = self._made(path.stat().st_size)
        shutil.copystat(path, fresh)
        fresh.replace(path)

    def rename(self) -> None:
        self._file().rename(self._name())

    def rename_folder(self) -> None:
        folder, to = self._folder(), self._name()
        if folder != self.root and folder not in to.parents:
            folder.rename(to)

    def swap(self) -> None:
        """Two files change names: each has what the other's entry says of its name."""
        one, other, aside = self._file(), self._file(), self._name()
        if one != other:
            one.rename(aside)
            other.rename(one)
            aside.rename(other)

    def exchange_folders(self) -> None:
        """What lies in them is not touched itself, and is found under another path."""
        one, other, aside = self._folder(), self._folder(), self.root / f"n{self.chance.randrange(10**9)}"
        if self.root in (one, other) or one == other or one in other.parents or other in one.parents:
            return
        one.rename(aside)
        other.rename(one)
        aside.rename(other)

    def link(self) -> None:
        os.link(self._file(), self._name())

    def unlink(self) -> None:
        self._file().unlink()

    def unlink_folder(self) -> None:
        folder = self._folder()
        if folder != self.root and self.chance.random() < 0.2:
            shutil.rmtree(folder)

    def mode(self) -> None:
        self.chance.choice([self._file(), self._folder()]).chmod(self.chance.choice([0o600, 0o755, 0o4755, 0o1777, 0]))

    def owner(self) -> None:
        os.chown(self.chance.choice([self._file(), self._folder()]), self.chance.randrange(9), self.chance.randrange(9))

    def note(self) -> None:
        path = self.chance.choice([self._file(), self._folder()])
        os.setxattr(path, "user.note", self.chance.randbytes(20))
        if path.is_file() and self.chance.random() < 0.3:
            os.setxattr(path, "security.capability", CAPABILITY)
        elif self.chance.random() < 0.5:
            os.removexattr(path, "user.note")

    def times(self) -> None:
        os.utime(self._file(), ns=(1, self.chance.randrange(10**18)))

    def folder(self) -> None:
        self._name().mkdir()

    def symlink(self) -> None:
        self._name().symlink_to(f"/somewhere/{self.chance.random()}")

    def pipe(self) -> None:
        os.mkfifo(self._name())

    def between_small_and_large(self) -> None:
        path = self._file()
        large = path.stat().st_size > 256 << 10
        path.write_bytes(self.chance.randbytes(900 if large else 400_000))


@pytest.mark.parametrize(
    "seed", [1, 2, pytest.param(3, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.long)]
)
async def test_after_random_changes_what_is_unpacked_is_the_tree(traveller: Traveller, seed: int) -> None:
    """Several archives in a row, each from the one before: nothing is lost or added on the way, and no piece is kept in vain."""
    for turn in range(4):
        Changing(traveller.root, seed * 100 + turn).run(40)
        if turn % 2:
            await traveller.pause()
            Changing(traveller.root, seed * 100 + 50 + turn).run(5)
        expected = tree(traveller.root)
        assert await traveller.archive()
        assert len(traveller.objects.held) == len(await traveller.pieces()) + 2, "the pieces, one manifest, one key"
        await traveller.wake()
        assert tree(traveller.root) == expected
