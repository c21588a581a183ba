"""Files and trees over the API, and what a hostile tree may not do."""

import asyncio
import contextlib
import io
import os
import random
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support.fake_api import KEY, FakeApi, serve, tar

from sandkeep import AsyncClient, AsyncSandbox, Client, Sandbox
from sandkeep.sdk import errors
from sandkeep.sdk.pack import pack
from sandkeep.sdk.unpack import TreeWriter


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serve(FakeApi()) as running:
        running.add("dev")
        yield running


@pytest.fixture
def sandbox(api: FakeApi) -> Iterator[Sandbox]:
    with Client(api.url, KEY, retry_for=3.0) as client:
        yield Sandbox.get("dev", client=client)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = kind, link, mode, 1_700_000_000
    return info


def unpack(data: bytes, target: Path, step: int = 1000) -> TreeWriter:
    writer = TreeWriter(target)
    for at in range(0, len(data), step):
        writer.feed(data[at : at + step])
    return writer


def everything(folder: Path) -> dict[str, bytes | str | None]:
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


def test_single_files(api: FakeApi, sandbox: Sandbox) -> None:
    files = sandbox.files
    files.write("/a", "text")
    files.write("/b", b"bytes")
    files.write("/c", io.BytesIO(b"from a file"))
    files.write("/d", (chunk for chunk in (b"an ", b"iterator")))
    assert api.files == {"/a": b"text", "/b": b"bytes", "/c": b"from a file", "/d": b"an iterator"}
    assert (files.read("/b"), files.read_text("/a")) == (b"bytes", "text")
    assert b"".join(files.read_stream("/d")) == b"an iterator"
    with pytest.raises(errors.NotFound, match="does not exist"):
        files.read("/nope")
    assert [info.name for info in files.list("/")] == ["a", "b", "c", "d"]
    info = files.stat("/a")
    assert (info.type, info.size, info.modified_at is not None) == ("file", 4, True)
    assert (files.exists("/a"), files.exists("/nope")) == (True, False)
    files.make_dir("/new")
    files.make_dir("/new")
    with pytest.raises(errors.AlreadyExists):
        files.make_dir("/new", exist_ok=False)
    files.move("/a", "/z")
    files.remove("/z")
    assert "/z" not in api.files
    assert [event.kind for event in files.watch("/")] == ["create"]


def test_an_upload_of_bytes_is_repeated_and_a_stream_is_not(api: FakeApi, sandbox: Sandbox) -> None:
    api.drop()
    sandbox.files.write("/a", b"x")
    api.drop()
    with pytest.raises(errors.ConnectionLost):
        sandbox.files.write("/b", iter([b"x"]))


def make_tree(root: Path) -> None:
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a.txt").write_text("hello")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "sub" / "big").write_bytes(random.Random(1).randbytes(3_000_001))
    (root / "sub" / "deep" / ("n" * 150)).write_bytes(b"")
    (root / "sub" / "umlaut-\u00fc").write_text("x")
    (root / "sub" / "up").symlink_to("../a.txt")
    (root / "sub").chmod(0o555)


def test_a_tree_round_trip(tmp_path: Path) -> None:
    make_tree(tmp_path / "in")
    data = b"".join(pack(tmp_path / "in"))
    for step in (1, 7, 512, 1 << 20):
        # One byte at a time only for the small beginning; the rest is the same code.
        target = tmp_path / f"out{step}"
        writer = TreeWriter(target)
        head = data[:20000] if step < 512 else b""
        for at in range(0, len(head), step):
            writer.feed(head[at : at + step])
        for at in range(len(head), len(data), max(step, 512)):
            writer.feed(data[at : at + max(step, 512)])
        result = writer.finish()
        assert everything(target) == everything(tmp_path / "in")
        assert (result.files, result.folders, result.symlinks, result.skipped_count) == (5, 3, 1, 0)
        assert (target / "run.sh").stat().st_mode & 0o777 == 0o755
        assert (target / "sub").stat().st_mode & 0o777 == 0o555
    for folder in tmp_path.glob("*/sub"):
        folder.chmod(0o755)


def test_python_reads_what_we_pack(tmp_path: Path) -> None:
    make_tree(tmp_path / "in")
    os.mkfifo(tmp_path / "in" / "fifo")
    left_out: list[str] = []
    data = b"".join(pack(tmp_path / "in", exclude=["*.sh", "sub/deep"], skipped=left_out.append))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
        big = archive.extractfile("sub/big")
        assert big is not None
        assert big.read() == (tmp_path / "in" / "sub" / "big").read_bytes()
    assert names == ["a.txt", "empty", "sub", "sub/big", "sub/umlaut-\u00fc", "sub/up"]
    assert left_out == ["fifo"]
    (tmp_path / "in" / "sub").chmod(0o755)
    single = b"".join(pack(tmp_path / "in" / "a.txt", name="b.txt"))
    with tarfile.open(fileobj=io.BytesIO(single)) as archive:
        assert archive.getnames() == ["b.txt"]
    with pytest.raises(errors.InvalidArgument):
        list(pack(tmp_path / "nope"))


@pytest.mark.parametrize("name", ["/etc/passwd", "../out", "a/../../out", "a/b/../../../out", "..", "/"])
def test_names_that_lead_out_end_the_copy(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.UnsafeArchive):
        unpack(tar([(member(name), b"evil")]), tmp_path / "in" / "target")
    assert everything(tmp_path) == {"in": None, "in/target": None}


@pytest.mark.parametrize(
    "link", ["/etc", "..", "../..", "a/../../x", "../target/../../x", "./../x", "//etc", "a/..", "x/../y"]
)
def test_symlinks_that_lead_out_are_skipped(tmp_path: Path, link: str) -> None:
    writer = unpack(tar([(member("l", tarfile.SYMTYPE, link), b""), (member("f"), b"x")]), tmp_path / "target")
    result = writer.finish()
    assert everything(tmp_path / "target") == {"f": b"x"}
    assert result.skipped_count == 1
    assert "leads out" in result.skipped[0]


def test_no_chain_of_links_leads_out(tmp_path: Path) -> None:
    target = tmp_path / "target"
    links = [
        (member("p", tarfile.DIRTYPE, mode=0o755), b""),
        (member("p/q", tarfile.SYMTYPE, ".."), b""),
        (member("r", tarfile.SYMTYPE, "p/q/.."), b""),
        (member("s", tarfile.SYMTYPE, "p/q"), b""),
        (member("p/t", tarfile.SYMTYPE, "q/q/../.."), b""),
    ]
    unpack(tar(links), target).finish()
    for path in target.rglob("*"):
        assert path.resolve().is_relative_to(target)
    assert everything(target) == {"p": None, "p/q": "..", "s": "p/q"}


@pytest.mark.parametrize("through", ["l/f", "l/l2/f"])
def test_nothing_is_written_through_a_link(tmp_path: Path, through: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "here").symlink_to(outside)
    with pytest.raises(errors.UnsafeArchive):
        unpack(tar([(member("here/f"), b"evil")]), target)
    with pytest.raises(errors.UnsafeArchive):
        unpack(tar([(member("d/x"), b""), (member("l", tarfile.SYMTYPE, "d"), b""), (member(through), b"e")]), target)
    assert everything(outside) == {}
    # A link of the same name as a file is replaced, not followed.
    (outside / "f").write_bytes(b"mine")
    (target / "g").symlink_to(outside / "f")
    unpack(tar([(member("g"), b"theirs")]), target).finish()
    assert (outside / "f").read_bytes() == b"mine"
    assert (target / "g").read_bytes() == b"theirs"


def test_what_the_sender_leaves_out_is_named(tmp_path: Path) -> None:
    told = tarfile.TarInfo("skipped")
    told.type = tarfile.XGLTYPE
    record = b" SANDKEEP.skipped=pipe is a FIFO\n"
    body = str(len(record) + 2).encode() + record
    told.size = len(body)
    result = unpack(tar([(told, body), (member("a"), b"content")]), tmp_path / "target").finish()
    assert (result.files, result.skipped, result.skipped_count) == (1, ("pipe is a FIFO",), 1)


def test_zeros_become_holes(tmp_path: Path) -> None:
    content = bytes(8 << 20) + b"middle" + bytes(8 << 20)
    data = tar([(member("big"), content)])
    writer = TreeWriter(tmp_path)
    for at in range(0, len(data), 65536):
        writer.feed(data[at : at + 65536])
    writer.finish()
    assert (tmp_path / "big").read_bytes() == content
    assert (tmp_path / "big").stat().st_blocks * 512 < 1 << 20


def test_devices_and_hard_links(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    target = tmp_path / "target"
    data = tar(
        [
            (member("null", tarfile.CHRTYPE), b""),
            (member("pipe", tarfile.FIFOTYPE), b""),
            (member("a"), b"content"),
            (member("b", tarfile.LNKTYPE, "a"), b""),
            (member("c", tarfile.LNKTYPE, "missing"), b""),
        ]
    )
    result = unpack(data, target).finish()
    assert everything(target) == {"a": b"content", "b": b"content"}
    assert (target / "a").stat().st_nlink == 1
    assert result.skipped_count == 3
    for link in ("/etc/passwd", "../secret"):
        with pytest.raises(errors.UnsafeArchive):
            unpack(tar([(member("x", tarfile.LNKTYPE, link), b"")]), target)
    (target / "s").symlink_to("../secret")
    with pytest.raises(errors.UnsafeArchive):
        unpack(tar([(member("x", tarfile.LNKTYPE, "s"), b"")]), target)
    assert not (target / "x").exists()


def test_special_bits_are_dropped(tmp_path: Path) -> None:
    unpack(tar([(member("f", mode=0o6755), b""), (member("d", tarfile.DIRTYPE, mode=0o7777), b"")]), tmp_path).finish()
    assert (tmp_path / "f").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "d").stat().st_mode & 0o7777 == 0o777


@pytest.mark.parametrize("cut", [100, 600, 700, 1500])
def test_a_cut_tree_is_an_error_and_leaves_no_half_file(tmp_path: Path, cut: int) -> None:
    data = tar([(member("f"), b"x" * 3000)])
    with pytest.raises(errors.UnsafeArchive, match="cut"):
        unpack(data[:cut], tmp_path).finish()
    assert everything(tmp_path) == {}


def test_noise_is_refused(tmp_path: Path) -> None:
    noise = random.Random(7)
    valid = tar([(member("n" * 200), b"x" * 100), (member("b"), b"y")])
    for _ in range(300):
        data = bytearray(valid)
        for _ in range(noise.randrange(1, 6)):
            data[noise.randrange(len(data))] = noise.randrange(256)
        with contextlib.suppress(errors.SandkeepError):
            unpack(bytes(data), tmp_path / "t").finish()
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def sparse(parts: list[tuple[int, bytes]], size: int, table: bytes | None = None) -> bytes:
    """A file in PAX sparse format 1.0, as the agent sends it."""
    head = table
    if head is None:
        head = f"{len(parts)}\n".encode() + b"".join(f"{at}\n{len(data)}\n".encode() for at, data in parts)
    head += bytes(-len(head) % 512)
    info = member("GNUSparseFile.0/s")
    info.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": str(size),
    }  # fmt: skip
    return tar([(info, head + b"".join(data for _, data in parts))])


@pytest.mark.parametrize("step", [1, 511, 100_000])
def test_sparse_files(tmp_path: Path, step: int) -> None:
    data = sparse([(4096, b"abc"), (1 << 20, b"end"), (5 << 20, b"")], 5 << 20)
    unpack(data, tmp_path, step).finish()
    content = (tmp_path / "s").read_bytes()
    assert (len(content), content[4096:4099], content[1 << 20 : (1 << 20) + 3]) == (5 << 20, b"abc", b"end")
    assert content.count(0) == len(content) - 6
    assert (tmp_path / "s").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("table", [b"", b"x\n", b"9" * 600, b"2\n1\n1\n", b"1\n-1\n3\n", b"1\n0\n99\n", b"0\n"])
def test_broken_maps_are_refused(tmp_path: Path, table: bytes) -> None:
    with pytest.raises(errors.UnsafeArchive):
        unpack(sparse([(0, b"abc")], 10, table), tmp_path).finish()


def test_any_number_of_headers_takes_no_memory(tmp_path: Path) -> None:
    writer = TreeWriter(tmp_path)
    info = member("f")
    info.pax_headers = {f"junk{number}": "x" * 500 for number in range(100)}
    head = info.tobuf(tarfile.PAX_FORMAT)[:-512]
    for _ in range(100):
        writer.feed(head)
    assert len(writer._pax) == 0


def test_trees_over_the_api(api: FakeApi, sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "f").write_text("x")
    sent: list[int] = []
    result = sandbox.files.write_tree(tmp_path / "in", "/work", progress=sent.append)
    assert (result.files, sum(sent)) == (1, len(api.tree_got))
    api.tree = api.tree_got
    assert sandbox.files.read_tree("/work", tmp_path / "out").files == 1
    assert everything(tmp_path / "out") == {"f": b"x"}
    api.tree = tar([(member("../x"), b"")])
    with pytest.raises(errors.UnsafeArchive):
        sandbox.files.read_tree("/work", tmp_path / "out")
    api.tree = tar([(member("g"), b"x" * 5000)])[:3000]
    with pytest.raises(errors.UnsafeArchive):
        sandbox.files.read_tree("/work", tmp_path / "out")
    assert everything(tmp_path / "out") == {"f": b"x"}


def test_the_same_async(api: FakeApi, tmp_path: Path) -> None:
    async def produce() -> AsyncIterator[bytes]:
        yield b"async "
        yield b"iterator"

    async def scenario() -> None:
        async with AsyncClient(api.url, KEY) as client:
            files = (await AsyncSandbox.get("dev", client=client)).files
            await files.write("/a", produce())
            await files.write("/b", io.BytesIO(b"file"))
            assert (await files.read("/a"), await files.read("/b")) == (b"async iterator", b"file")
            assert b"".join([chunk async for chunk in files.read_stream("/a")]) == b"async iterator"
            (tmp_path / "in").mkdir()
            (tmp_path / "in" / "f").write_text("x")
            await files.write_tree(tmp_path / "in", "/w")
            api.tree = api.tree_got
            await files.read_tree("/w", tmp_path / "out")
            assert everything(tmp_path / "out") == {"f": b"x"}
            assert [event.kind async for event in files.watch("/")] == ["create"]

    asyncio.run(scenario())
