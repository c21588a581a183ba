"""Trees as tar, read back by Python's own reader; and bytes in blocks."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.engine.packages import dpkg_status
from sandkeep.lib import beneath, blocks
from sandkeep.lib.tree_tar import DEEPEST, TooDeepError, TreeTar
from sandkeep.sdk.unpack import TreeWriter


def packed(root: Path, path: bytes = b"/", name: bytes = b".", *, follow: bool = True, whole: bool = False) -> bytes:
    with beneath.root(root) as base:
        tar = TreeTar(base, path, name, follow=follow, whole=whole)
    try:
        return b"".join(tar)
    finally:
        tar.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "file").write_bytes(b"x" * 100_000)
    (root / "file").chmod(0o4755)
    os.utime(root / "file", ns=(0, 1_000_000_000_123_456_789))
    (root / "second").hardlink_to(root / "file")
    (root / "link").symlink_to("/etc/passwd")
    (root / "old").write_text("")
    os.utime(root / "old", ns=(0, -1_500_000_000))
    os.mkfifo(root / "pipe")
    Path(os.fsdecode(os.fsencode(root) + b"/sub/\xff" + b"n" * 200)).write_text("bytes")
    os.setxattr(root / "file", "user.note", b"\x00\xffkept")
    with (root / "holes").open("wb") as file:
        for offset in (1 << 20, 1 << 33):
            file.seek(offset)
            file.write(b"data")
    return root


def test_a_tree_comes_out_as_it_is(tree: Path) -> None:
    before = descriptors()
    data = packed(tree)
    assert descriptors() == before
    assert len(data) < 1 << 20, "holes are none of it"
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        found = {member.name: member for member in tar.getmembers()}
        kept = tar.extractfile("file")
        assert kept is not None
        assert kept.read() == b"x" * 100_000
    assert sorted(found) == sorted(
        [".", "file", "holes", "link", "old", "pipe", "second", "sub", "sub/\udcff" + "n" * 200]
    )
    assert (found["file"].mode, found["file"].uid) == (0o4755, os.getuid())
    assert found["file"].pax_headers["mtime"] == "1000000000.123456789"
    assert os.fsencode(found["file"].pax_headers["SCHILY.xattr.user.note"]) == b"\x00\xffkept"
    assert (found["second"].type, found["second"].linkname) == (tarfile.LNKTYPE, "file")
    assert (found["link"].type, found["link"].linkname) == (tarfile.SYMTYPE, "/etc/passwd")
    assert found["pipe"].isfifo()
    assert found["holes"].size == (1 << 33) + 4


def test_it_is_written_elsewhere_as_it_was(tree: Path, tmp_path: Path) -> None:
    writer, data = TreeWriter(tmp_path / "out"), packed(tree)
    for position in range(0, len(data), 1000):
        writer.feed(data[position : position + 1000])
    done = writer.finish()
    assert (done.files, done.symlinks, done.skipped_count) == (5, 0, 2)
    holes = (tmp_path / "out/holes").stat()
    assert (holes.st_size, holes.st_blocks < 1000) == ((1 << 33) + 4, True)
    with (tmp_path / "out/holes").open("rb") as file:
        file.seek(1 << 20)
        assert file.read(6) == b"data\0\0"


@pytest.mark.parametrize("path", [b"/file", b"/link", b"/sub", b"/pipe"])
def test_one_thing_has_the_name_that_it_is_given(tree: Path, path: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(tree, path, b"named", follow=False)), errors="surrogateescape") as tar:
        assert tar.getmembers()[0].name == "named"
        assert len(tar.getmembers()) == (2 if path == b"/sub" else 1)


def test_what_is_too_deep_is_said_or_refused(tmp_path: Path) -> None:
    deepest = tmp_path / "root"
    deepest.mkdir()
    fd = os.open(deepest, os.O_RDONLY)
    for _ in range(DEEPEST + 50):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    before = descriptors()
    assert b"is deeper than" in packed(deepest)
    with pytest.raises(TooDeepError):
        packed(deepest, whole=True)
    assert descriptors() == before


def test_a_file_that_shrinks_is_filled_up(tree: Path) -> None:
    (tree / "large").write_bytes(b"y" * 3_000_000)
    with beneath.root(tree) as base:
        tar = TreeTar(base, b"/large", b"large", follow=True)
    first = next(tar)
    os.truncate(tree / "large", 10)
    data = first + b"".join(tar)
    tar.close()
    with tarfile.open(fileobj=io.BytesIO(data)) as read:
        assert read.getmembers()[0].size == 3_000_000


@given(st.lists(st.binary(min_size=1, max_size=50)), st.integers(1, 30), st.booleans())
def test_blocks_come_as_they_were_sent(sent: list[bytes], step: int, failed: bool) -> None:
    data = b"".join(map(blocks.block, sent)) + (blocks.error(b"said") if failed else blocks.END)
    found, came = blocks.Blocks(), list[bytes]()
    for position in range(0, len(data), step):
        assert not found.ended
        came += found.feed(data[position : position + step])
    assert (came, found.ended, found.error) == (sent, not failed, b"said" if failed else None)


@given(st.binary(max_size=100))
def test_what_are_no_blocks_is_refused_or_waits(data: bytes) -> None:
    try:
        came = blocks.Blocks().feed(data)
    except blocks.BlocksError:
        return
    assert sum(map(len, came)) <= len(data)


@given(st.lists(st.sampled_from([b"Package: a", b"Version: 1", b"Status: x installed", b"", b"\xff", b": :", b" y"])))
def test_a_status_file_of_any_kind_is_read(lines: list[bytes]) -> None:
    assert set(dpkg_status(b"\n".join(lines))) <= {"a", "a:"}
