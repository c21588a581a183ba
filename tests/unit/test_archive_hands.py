"""Threads of the confined program: nothing that comes out depends on them, and a failure in the middle is told."""

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest

from sandkeep.engine.archive import carry, frames
from sandkeep.engine.archive.format import Body, Head, Manifest, body_from_json
from sandkeep.engine.archive.hands import Hands
from sandkeep.engine.archive.keys import NAME, DamagedError, DataKey
from sandkeep.engine.archive.pack import Packer, Put
from sandkeep.engine.archive.unpack import Unpacker
from support.trees import fill_tree, tree

KEY = DataKey(bytes(range(32)))
HEAD = Head("sbx_one", "prj_one", 1, "", 1.0)


@pytest.fixture
def hands() -> Iterator[Hands]:
    made = Hands(3)
    yield made
    made.end()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Large files with pieces that are there several times, small ones that share pieces, and then empty ones."""
    found = tmp_path / "disk"
    found.mkdir()
    fill_tree(found)
    same = os.urandom(1 << 20)
    for number in range(4):
        (found / f"large-{number}").write_bytes(same + os.urandom(3 << 20) + same + bytes(1 << 20) + b"end")
        (found / f"middle-{number}").write_bytes(os.urandom(300_000))
    for number in range(500):
        (found / f"small-{number:03}").write_bytes(os.urandom(number * 7))
    (found / "zz").mkdir()
    for number in range(5000):
        (found / "zz" / f"empty-{number}").touch()
    return found


def packed(disk: Path, put: Put, hands: Hands) -> Body:
    root = os.open(disk, os.O_RDONLY)
    try:
        return Packer(KEY, set(), put, hands).pack(root, None)
    finally:
        os.close(root)


def test_what_is_packed_and_its_order_do_not_depend_on_threads(disk: Path, hands: Hands) -> None:
    (disk.parent / "memory").mkdir()
    (disk.parent / "memory/pages.img").write_bytes(os.urandom(4 << 20) + (disk / "large-1").read_bytes()[: 2 << 20])
    root, memory = (os.open(disk.parent / name, os.O_RDONLY) for name in ("disk", "memory"))
    orders: list[list[bytes]] = []
    bodies = []
    for some in (None, hands):
        order: list[bytes] = []
        bodies.append(Packer(KEY, set(), lambda name, _, order=order: order.append(name), some).pack(root, memory))
        orders.append(order)
    for fd in (root, memory):
        os.close(fd)
    assert bodies[0] == bodies[1]
    content = set(bodies[0].content)
    for order in orders:
        assert [name for name in order if name in content] == list(bodies[0].content)
        assert [name for name in order if name not in content] == list(bodies[0].index)
    known = frozenset(bodies[0].content[::2])
    again: list[bytes] = []
    root = os.open(disk, os.O_RDONLY)
    Packer(KEY, known, lambda name, _: again.append(name), hands).pack(root, None)
    os.close(root)
    assert again and not known & set(again), "what the store has is not put again"


def test_a_file_that_carries_a_sandbox_is_poured_in_the_order_of_its_table(disk: Path, hands: Hands) -> None:
    root, out = os.open(disk, os.O_RDONLY), io.BytesIO()
    carry.pour(bytes(32), {"disk": root}, out, hands)
    os.close(root)
    out.seek(0)
    sent = []
    while out.tell() < len(out.getbuffer()):
        sent.append(frames.receive(out))
    [at] = [at for at, (kind, _) in enumerate(sent) if kind == carry.BODY]
    body = body_from_json(json.loads(sent[at][1]))
    names = [data[:NAME] for kind, data in sent if kind == frames.PIECE]
    assert names == [*body.index, *body.content] and len(body.index) == at


def test_a_piece_that_cannot_be_put_ends_it(disk: Path, hands: Hands) -> None:
    count = 0

    def put(name: bytes, sealed: bytes) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise BrokenPipeError("the engine is gone")

    with pytest.raises(BrokenPipeError):
        packed(disk, put, hands)
    assert count == 5, "nothing is put after that"


def test_damaged_pieces_among_many_under_way_are_all_named_and_nothing_else(disk: Path, hands: Hands) -> None:
    pieces: dict[bytes, bytes] = {}
    manifest = Manifest(HEAD, packed(disk, pieces.__setitem__, hands), "")
    unpacker = Unpacker(KEY, manifest, lambda names: (pieces[name] for name in names), hands)
    unpacker.verify()
    bad = [manifest.body.content[at] for at in (0, 3, 4, len(manifest.body.content) - 1)]
    good = dict(pieces)
    pieces[bad[0]] = pieces[bad[0]][:-1]
    pieces[bad[1]], pieces[bad[2]] = pieces[bad[2]], pieces[bad[1]]
    pieces[bad[3]] = b""
    with pytest.raises(DamagedError, match="and 3 more") as found:
        unpacker.verify()
    assert found.value.pieces == tuple(name.hex() for name in bad)
    for make in (unpacker.unpack, unpacker.rehearse):
        with pytest.raises(DamagedError) as found:
            _into(disk.parent / f"again-{make.__name__}", make)
        assert found.value.pieces == (bad[0].hex(),), "the first of them in the order of the table"
    pieces.update(good)
    whole = disk.parent / "whole"
    _into(whole, unpacker.rehearse)
    assert tree(whole) == tree(disk)


def _into(folder: Path, make: Callable[[int, None], object]) -> None:
    folder.mkdir()
    root = os.open(folder, os.O_RDONLY)
    try:
        make(root, None)
    finally:
        os.close(root)


def test_a_store_that_gives_no_more_is_told_and_so_much_is_under_way(hands: Hands) -> None:
    taken = 0

    def work() -> Iterator[int]:
        nonlocal taken
        for taken in range(1, 1000):
            if taken == 500:
                raise ConnectionError("gone")
            yield taken

    results = hands.in_order(lambda number: number * 2, work())
    assert next(results) == 2
    assert taken == hands.room, "no more than that is held at once"
    with pytest.raises(ConnectionError):
        list(results)


def test_results_keep_their_order_when_the_first_is_the_last_to_be_done(hands: Hands) -> None:
    last = Event()

    def do(number: int) -> int:
        if number == 0:
            assert last.wait(30)
        if number == 2:
            last.set()
        if number == 4:
            raise DamagedError("four")
        return number

    results = hands.in_order(do, range(100))
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(DamagedError, match="four"):
        next(results)
