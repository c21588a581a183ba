"""The parser of btrfs' send streams: what it finds, and that no bytes lead it astray."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.contracts.disks import Touched
from sandkeep.drivers.disk.btrfs.stream import StreamError, TouchedPaths

HEAD = b"btrfs-stream\0" + struct.pack("<I", 1)
MKFILE, RENAME, SET_XATTR, UTIMES, END, UPDATE_EXTENT = 3, 9, 13, 20, 21, 22
PATH, PATH_TO, XATTR_NAME = 15, 16, 13


def command(kind: int, *attributes: tuple[int, bytes]) -> bytes:
    body = b"".join(struct.pack("<HH", name, len(value)) + value for name, value in attributes)
    return struct.pack("<IHI", len(body), kind, 0) + body


def read(data: bytes, step: int = 1 << 20) -> Touched:
    paths = TouchedPaths()
    for position in range(0, len(data), step):
        paths.feed(data[position : position + step])
    return paths.found()


STREAM = HEAD + b"".join(
    (
        command(2, (PATH, b"disk")),
        command(MKFILE, (PATH, b"o257-8-0")),
        command(RENAME, (PATH, b"o257-8-0"), (PATH_TO, b"home/new\xff")),
        command(SET_XATTR, (PATH, b"home/noted"), (XATTR_NAME, b"user.x")),
        command(UPDATE_EXTENT, (PATH, b"home/written")),
        command(UTIMES, (PATH, b"")),
        command(END),
    )
)


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_it_finds_what_is_touched_however_it_comes(step: int) -> None:
    found = read(STREAM, step)
    assert found.moved == {b"o257-8-0", b"home/new\xff"}
    assert found.written == {b"home/written"}
    assert found.noted == {b"home/noted"}
    assert found.paths == {b"", b"home/noted", b"home/written"} | found.moved


@pytest.mark.parametrize("length", range(len(STREAM)))
def test_a_cut_stream_is_none(length: int) -> None:
    with pytest.raises(StreamError):
        read(STREAM[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"tar" * 20,
        b"btrfs-stream\0" + struct.pack("<I", 99),
        HEAD + struct.pack("<IHI", 1 << 31, UTIMES, 0),
        HEAD + command(77, (PATH, b"a")),
        HEAD + command(UTIMES),
        HEAD + command(RENAME, (PATH, b"a")),
        HEAD + command(UTIMES, (PATH, b"a\0b")),
        HEAD + struct.pack("<IHI", 6, UTIMES, 0) + struct.pack("<HH", PATH, 60000) + b"ab",
        HEAD + struct.pack("<IHI", 3, UTIMES, 0) + b"abc",
    ],
    ids=["other", "version", "huge", "command", "no path", "no target", "nul", "long attribute", "torn attribute"],
)
def test_what_does_not_fit_is_refused(data: bytes) -> None:
    with pytest.raises(StreamError):
        read(data + command(END))


@given(st.binary(max_size=400), st.integers(1, 64))
def test_no_bytes_make_it_fail_otherwise(data: bytes, step: int) -> None:
    for whole in (data, HEAD + data):
        try:
            found = read(whole, step)
        except StreamError:
            continue
        assert all(b"\0" not in path for path in found.paths)


@given(st.data())
def test_flipped_bytes_are_refused_or_give_paths(data: st.DataObject) -> None:
    broken = bytearray(STREAM)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read(bytes(broken))
    except StreamError:
        return
    assert found.moved | found.written | found.noted <= found.paths


@given(st.lists(st.tuples(st.sampled_from([MKFILE, UTIMES, UPDATE_EXTENT]), st.binary(min_size=1, max_size=80))))
def test_every_path_is_found(said: list[tuple[int, bytes]]) -> None:
    said = [(kind, path.replace(b"\0", b"x")) for kind, path in said]
    stream = HEAD + b"".join(command(kind, (PATH, path)) for kind, path in said) + command(END)
    found = read(stream, 13)
    assert found.paths == {path for _, path in said}
    assert found.written == {path for kind, path in said if kind == UPDATE_EXTENT}
