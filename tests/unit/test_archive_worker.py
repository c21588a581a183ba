"""The confined program on the real kernel: what it packs and unpacks, what it cannot do, and how it fails."""

import os
import pwd
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from sandkeep.domain.errors import Conflict, Internal, NotFound, Unavailable
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.drivers.fake.objects import FakeObjects
from sandkeep.engine.archive.format import Head, Manifest
from sandkeep.engine.archive.keys import DamagedError, DataKey, KeyRing
from sandkeep.engine.archive.pack import Packer
from sandkeep.engine.archive.unpack import Unpacker
from sandkeep.engine.archive.vault import Chain, Vault
from sandkeep.engine.archive.worker import Folders, Worker
from sandkeep.lib import process
from support.trees import fill_tree, tree

pytestmark = pytest.mark.anyio

NOBODY = pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid
PROJECT = new_id(IdKind.PROJECT)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects = FakeObjects()
        self.vault = Vault(self.objects, KeyRing(folder / "keys"), Worker(NOBODY))
        self.sandbox = new_id(IdKind.SANDBOX)
        self.disk, self.memory = folder / "disk", folder / "memory"
        for path in (self.disk, self.memory):
            path.mkdir()
        self.chain = self.vault.new_chain(self.sandbox, PROJECT)

    async def write(self) -> Chain:
        folders = Folders(self.disk, self.memory)
        self.chain, _ = await self.vault.write(self.sandbox, PROJECT, self.chain, folders, {}, {}, 1.0)
        return self.chain

    async def unpack(self, chain: Chain | None = None, memory: bool = True) -> Path:
        again = self.folder / "again"
        shutil.rmtree(again, ignore_errors=True)
        for path in (again, again / "disk", again / "memory"):
            path.mkdir()
        folders = Folders(again / "disk", again / "memory" if memory else None)
        await self.vault.unpack(self.sandbox, PROJECT, chain or self.chain, folders)
        return again


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_a_disk_with_owners_it_is_not_goes_there_and_back(bench: Bench) -> None:
    fill_tree(bench.disk)
    (bench.memory / "pages.img").write_bytes(os.urandom(3_000_000))
    (bench.memory / "pages.img").chmod(0o600)
    bench.memory.chmod(0o700)
    await bench.write()
    assert b"only its owner's" not in b"".join(bench.objects.held.values())
    again = await bench.unpack()
    assert tree(again / "disk") == tree(bench.disk)
    found = again / "memory/pages.img"
    assert found.read_bytes() == (bench.memory / "pages.img").read_bytes()
    assert (found.stat().st_uid, found.stat().st_mode & 0o777) == (0, 0o600)


async def test_each_archive_uploads_what_changed_and_prunes_what_is_not_needed(bench: Bench) -> None:
    fill_tree(bench.disk)
    await bench.write()
    before = dict(bench.objects.held)
    (bench.disk / "home/large").write_bytes(os.urandom(1_200_000))
    chain, body = await bench.vault.write(bench.sandbox, PROJECT, bench.chain, Folders(bench.disk), {}, {}, 2.0)
    fresh = [key for key in bench.objects.held if key not in before]
    assert sum("pieces" in key for key in fresh) <= 3
    assert chain.sequence == 2
    await bench.vault.prune(bench.sandbox, [chain], body.pieces())
    assert len(bench.objects.held) == len(body.pieces()) + 2, "the pieces, one manifest, one key"
    assert tree(await bench.unpack(chain) / "disk") == tree(bench.disk)
    await bench.vault.erase(bench.sandbox)
    assert bench.objects.held == {}


async def test_what_the_store_damaged_is_refused_and_named(bench: Bench) -> None:
    """Whatever is changed, cut, swapped or put back from before."""
    (bench.disk / "one").write_bytes(os.urandom(400_000))
    (bench.disk / "two").write_bytes(os.urandom(400_000))
    (bench.memory / "pages.img").write_bytes(os.urandom(1_200_000))
    first = await bench.write()
    old = dict(bench.objects.held)
    (bench.disk / "two").write_bytes(b"changed" * 90_000)
    await bench.write()
    good = dict(bench.objects.held)
    for key, data in good.items():
        if key.endswith("/key") or (key in old and "manifests" in key):
            continue  # the node has its own copy; an older manifest is not read
        middle = len(data) // 2
        for changed in (
            data[:-1],
            data[:middle],
            data + b"\0",
            bytes([data[0] ^ 1]) + data[1:],
            data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            data[:-1] + bytes([data[-1] ^ 1]),
            b"",
            old[next(iter(old))],
        ):
            bench.objects.held = {**good, key: changed}
            if "pieces" in key and key.rpartition("/")[2] not in str(await _needed(bench)):
                continue
            with pytest.raises(Conflict, match=r"refused: (the piece|the manifest|this is no manifest)"):
                await bench.unpack()
        bench.objects.held = {other: data for other, data in good.items() if other != key}
        if "manifests" in key:
            with pytest.raises(Conflict, match="not in the store"):
                await bench.unpack()
    newest, older = (f"sandboxes/{bench.sandbox}/manifests/{number:08d}" for number in (2, 1))
    bench.objects.held = {**good, newest: good[older]}
    with pytest.raises(Conflict, match=r"is the 1\. of its chain, not the 2\."):
        await bench.unpack()
    bench.objects.held = good
    other = Bench.__new__(Bench)
    other.__dict__ = {**bench.__dict__, "sandbox": new_id(IdKind.SANDBOX)}
    other.chain = bench.vault.new_chain(other.sandbox, PROJECT)
    theirs = await other.write()
    bench.objects.held = {
        **good,
        newest: bench.objects.held[f"sandboxes/{other.sandbox}/manifests/{theirs.sequence:08d}"],
    }
    with pytest.raises(Conflict, match=f"another sandbox, {other.sandbox}"):
        await bench.unpack()
    bench.objects.held = good
    with pytest.raises(Conflict, match="its project's key"):
        await bench.unpack(Chain(theirs.key, bench.chain.sequence, bench.chain.hash))
    await bench.unpack()
    assert first.hash != bench.chain.hash


async def _needed(bench: Bench) -> set[str]:
    held, bench.objects.held = bench.objects.held, dict(bench.objects.held)
    try:
        return (await bench.vault.read(bench.sandbox, PROJECT, bench.chain)).body.pieces()
    finally:
        bench.objects.held = held


async def test_an_upload_that_did_not_arrive_whole_does_not_count_and_the_next_one_heals_it(bench: Bench) -> None:
    (bench.disk / "one").write_bytes(os.urandom(400_000))
    put = bench.objects.put

    async def torn(key: str, data: bytes) -> None:
        await put(key, data[: len(data) // 2] if "pieces" in key else data)

    bench.objects.put = torn  # type: ignore[method-assign]
    with pytest.raises(Conflict, match=r"the piece .* is damaged"):
        await bench.write()
    bench.objects.put = put  # type: ignore[method-assign]
    await bench.write()
    assert tree(await bench.unpack() / "disk") == tree(bench.disk)


async def test_a_rehearsal_restores_all_and_compares_it(bench: Bench) -> None:
    fill_tree(bench.disk)
    os.mknod(bench.disk / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.link(bench.disk / "device", bench.disk / "device-too")
    (bench.memory / "pages.img").write_bytes(os.urandom(2_500_000) + bytes(3_000_000))
    await bench.write()

    async def rehearsed() -> Path:
        again = bench.folder / "again"
        shutil.rmtree(again, ignore_errors=True)
        for path in (again, again / "disk", again / "memory"):
            path.mkdir()
        await bench.vault.rehearse(bench.sandbox, PROJECT, bench.chain, Folders(again / "disk", again / "memory"))
        return again

    again = await rehearsed()
    assert len(list((again / "disk").iterdir())) == len(list(bench.disk.iterdir())) - 2, "devices are not made"
    for key in [key for key in bench.objects.held if "pieces" in key][::3]:
        good = bench.objects.held[key]
        bench.objects.held[key] = good[:-1]
        with pytest.raises(Conflict, match="refused"):
            await rehearsed()
        bench.objects.held[key] = good
    await rehearsed()


@pytest.mark.parametrize("what", ["content", "mode", "time", "size", "link", "attribute", "other name", "memory"])
def test_what_was_made_otherwise_is_found(tmp_path: Path, what: str) -> None:
    """As a file system does that loses something: what is compared is what lies there, not what was written."""
    for name in ("disk", "memory", "again", "pages"):
        (tmp_path / name).mkdir()
    fill_tree(tmp_path / "disk")
    os.setxattr(tmp_path / "disk/home/large", "user.note", b"kept")
    os.link(tmp_path / "disk/home/large", tmp_path / "disk/too")
    (tmp_path / "disk/arrow").symlink_to("home")
    (tmp_path / "memory/pages.img").write_bytes(b"memory")
    pieces: dict[bytes, bytes] = {}
    key = DataKey(bytes(32))
    opened = {path.name: os.open(path, os.O_RDONLY) for path in tmp_path.iterdir()}
    body = Packer(key, set(), pieces.__setitem__).pack(opened["disk"], opened["memory"])
    manifest = Manifest(Head("sbx_one", "prj_one", 1, "", 1.0), body, "")
    again, large = tmp_path / "again", tmp_path / "again/home/large"

    class Forgetful(Unpacker):
        def _unpack(self, root: int, memory: int | None) -> Any:
            made = super()._unpack(root, memory)
            match what:
                case "content":
                    small = again / "home/small-7"
                    times = small.stat().st_mtime_ns
                    small.write_bytes(bytes(byte ^ 1 for byte in small.read_bytes()))
                    os.utime(small, ns=(times, times))
                case "mode":
                    large.chmod(0o6755)
                case "time":
                    os.utime(again / "home", ns=(1, 1))
                case "size":
                    os.truncate(large, 5)
                case "link":
                    os.unlink(again / "arrow")
                    os.symlink("elsewhere", again / "arrow")
                    os.utime(again / "arrow", ns=(5, 5), follow_symlinks=False)
                case "attribute":
                    os.setxattr(large, "user.note", b"lost")
                case "other name":
                    os.unlink(again / "too")
                    shutil.copy2(large, again / "too")
                case "memory":
                    (tmp_path / "pages/pages.img").write_bytes(b"memorY")
            return made

    unpacker = Forgetful(key, manifest, lambda names: (pieces[name] for name in names))
    with pytest.raises(DamagedError, match="something else"):
        unpacker.rehearse(opened["again"], opened["pages"])
    for fd in opened.values():
        os.close(fd)


async def test_a_store_that_goes_away_in_the_middle(bench: Bench) -> None:
    fill_tree(bench.disk)
    put, count = bench.objects.put, 0

    async def away(key: str, data: bytes) -> None:
        nonlocal count
        count += 1
        if count > 3:
            raise Unavailable("gone")
        await put(key, data)

    bench.objects.put = away  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await bench.write()
    bench.objects.put = put  # type: ignore[method-assign]
    await bench.write()
    bench.objects.away = True
    with pytest.raises(Unavailable):
        await bench.unpack()
    bench.objects.away = False
    await bench.unpack()


async def test_a_full_disk_is_said(bench: Bench) -> None:
    (bench.disk / "one").write_bytes(os.urandom(4_000_000))
    await bench.write()
    small = bench.folder / "small"
    small.mkdir()
    await process.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], timeout=10)
    try:
        with pytest.raises(Exception, match="the disk is full") as full:
            await bench.vault.unpack(bench.sandbox, PROJECT, bench.chain, Folders(small))
        assert getattr(full.value, "code", "") == "no_capacity"
    finally:
        await process.run(["umount", str(small)], timeout=10)


async def test_folders_that_are_too_deep_are_said(bench: Bench) -> None:
    here = os.open(bench.disk, os.O_RDONLY)
    for _ in range(2100):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    with pytest.raises(Internal, match="deep"):
        await bench.write()
    await process.run(["rm", "-rf", str(bench.disk)], timeout=10)


async def test_what_the_program_cannot_do(tmp_path: Path) -> None:
    """The same confinement around a probe: no file but the folder's, no network, no program, nobody else's process."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/file").write_text("seen")
    (tmp_path / "secret").write_text("secret")
    probe = f"""
import errno, os, queue, socket, signal, threading
from sandkeep.lib.confinement import confine
outer = os.open({str(tmp_path)!r}, os.O_RDONLY)
os.close(outer)
asked, answered = queue.SimpleQueue(), queue.SimpleQueue()
def other():
    while work := asked.get():
        answered.put(work())
def start():
    threading.Thread(target=other, daemon=True).start()
confine({{"disk": ({str(tmp_path / "disk")!r}, False)}}, {NOBODY[0]}, {NOBODY[1]}, ("dac_read_search",), start)
def said(call, *args):
    try:
        call(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
print(sorted(os.listdir("/")), os.getuid(), open("/disk/file").read())
print(said(os.stat, {str(tmp_path / "secret")!r}), said(os.stat, "/proc/self"), said(os.stat, "/etc/passwd"))
print(said(open, "/disk/new", "w"), said(os.mkdir, "/new"))
print(said(socket.socket, socket.AF_INET), said(os.execv, "/disk/file", ["x"]), said(os.kill, 1, 0))
print(said(os.setuid, 0), said(os.chroot, "/disk"), said(os.fork))
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.open_by_handle_at(3, b"\\0" * 64, 0)
print(errno.errorcode[ctypes.get_errno()])
def there():
    here = [os.getuid(), said(os.stat, {str(tmp_path / "secret")!r}), said(socket.socket, socket.AF_INET)]
    here += [said(os.execv, "/disk/file", ["x"]), said(os.kill, 1, 0), said(os.fork), said(os.setuid, 0)]
    libc.open_by_handle_at(3, b"\\0" * 64, 0)
    return [*here, errno.errorcode[ctypes.get_errno()], said(open, "/disk/new", "w"), held()]
def held():
    sets = (ctypes.c_uint32 * 6)()
    libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), sets)
    return list(sets)
asked.put(there)
here = there()
print(answered.get() == here, *here[:-1])
try:
    threading.Thread(target=other).start()
except RuntimeError:
    print("no thread more")
"""
    done = await process.run([sys.executable, "-I", "-c", probe], timeout=30)
    assert done.stdout.splitlines() == [
        f"['disk'] {NOBODY[0]} seen",
        "ENOENT ENOENT ENOENT",
        "EROFS EROFS",
        "EPERM EPERM EPERM",
        "EPERM EPERM EPERM",
        "EPERM",
        f"True {NOBODY[0]} ENOENT EPERM EPERM EPERM EPERM EPERM EPERM EROFS",
        "no thread more",
    ]


async def test_a_program_that_is_killed_is_said_and_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_tree(bench.disk)
    killed = []
    spawn = process.spawn

    def spawned(*args: object, **named: object) -> process.Child:
        child = spawn(*args, **named)  # type: ignore[arg-type]
        killed.append(child)
        os.kill(child.pid, 9)
        return child

    monkeypatch.setattr(process, "spawn", spawned)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Internal, match="ended"):
        await bench.write()
    assert {child.code for child in killed} == {-9}
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    monkeypatch.undo()
    with pytest.raises(NotFound):
        await bench.objects.get("sandboxes/none", 1)
