"""The archive's format: what was packed is what is unpacked, and nothing else is ever taken for it."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandkeep.engine.archive import format as fmt
from sandkeep.engine.archive.format import Body, Entry, Head, Manifest, read_entries, read_manifest, write_entry
from sandkeep.engine.archive.keys import DamagedError, DataKey, KeyRing, new_key, unwrap, wrap
from sandkeep.engine.archive.pack import Packer
from sandkeep.engine.archive.unpack import Unpacker
from support.trees import fill_tree, tree

KEY, SIGNING = DataKey(bytes(range(32))), b"s" * 32
HEAD = Head("sbx_one", "prj_one", 3, "ab" * 32, 1000.5)


class Store:
    """What a packer puts, for an unpacker."""

    def __init__(self) -> None:
        self.pieces: dict[bytes, bytes] = {}

    def put(self, name: bytes, sealed: bytes) -> None:
        self.pieces[name] = sealed

    def fetch(self, names: tuple[bytes, ...]) -> Iterator[bytes]:
        for name in names:
            yield self.pieces.get(name, b"")

    def pack(self, root: Path, memory: Path | None = None, key: DataKey = KEY) -> Manifest:
        packer = Packer(key, set(self.pieces), self.put)
        opened = [os.open(path, os.O_RDONLY) for path in (root, memory) if path]
        try:
            body = packer.pack(opened[0], opened[1] if memory else None)
        finally:
            for fd in opened:
                os.close(fd)
        return Manifest(HEAD, body, "")

    def unpack(self, manifest: Manifest, root: Path, memory: Path | None = None, key: DataKey = KEY) -> int:
        root.mkdir(exist_ok=True)
        opened = [os.open(path, os.O_RDONLY) for path in (root, memory) if path]
        try:
            return Unpacker(key, manifest, self.fetch).unpack(opened[0], opened[1] if memory else None)[0]
        finally:
            for fd in opened:
                os.close(fd)


def test_an_archive_of_the_first_format_is_read(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    fill_tree(tmp_path / "disk")
    old, store = DataKey(bytes(range(32)), format=1), Store()
    made = store.pack(tmp_path / "disk", key=old)
    manifest = fmt.write_manifest(replace(HEAD, format=1), made.body, old, SIGNING)
    store.unpack(read_manifest(manifest, KEY, SIGNING), tmp_path / "again")
    assert tree(tmp_path / "again") == tree(tmp_path / "disk")
    assert not set(made.body.content) & set(Store().pack(tmp_path / "disk").body.content)


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Store, Manifest]:
    (tmp_path / "disk").mkdir()
    fill_tree(tmp_path / "disk")
    store = Store()
    return store, store.pack(tmp_path / "disk")


def test_all_that_a_disk_can_hold_comes_back(tmp_path: Path, packed: tuple[Store, Manifest]) -> None:
    store, manifest = packed
    Unpacker(KEY, manifest, store.fetch).verify()
    assert store.unpack(manifest, tmp_path / "again") == 0
    assert tree(tmp_path / "again") == tree(tmp_path / "disk")
    assert (tmp_path / "again/home/holes").stat().st_blocks < 8 << 10, "holes stay holes"


def test_memory_comes_back_and_its_zeros_cost_nothing(tmp_path: Path) -> None:
    for name in ("disk", "memory", "again"):
        (tmp_path / name).mkdir()
    page = os.urandom(fmt.PIECE)
    (tmp_path / "memory/pages.img").write_bytes(page + bytes(3 * fmt.PIECE) + page + b"tail")
    (tmp_path / "memory/state").write_bytes(b"s")
    store = Store()
    manifest = store.pack(tmp_path / "disk", tmp_path / "memory")
    assert len(manifest.body.content) == 3, "one page, once, the tail, and the state"
    store.unpack(manifest, tmp_path / "root", tmp_path / "again")
    for name in ("pages.img", "state"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes()
    for name in list(store.pieces):
        if name in manifest.body.content:
            del store.pieces[name]
    assert store.unpack(manifest, tmp_path / "other") == 0, "the disk alone asks for none of it"


def test_a_small_change_is_a_small_upload(tmp_path: Path, packed: tuple[Store, Manifest]) -> None:
    store, first = packed
    before = set(store.pieces)
    assert store.pack(tmp_path / "disk").body == first.body
    assert set(store.pieces) == before, "nothing changed: nothing is put"
    (tmp_path / "disk/home/small-7").write_bytes(b"changed")
    with (tmp_path / "disk/home/large").open("r+b") as file:
        file.write(b"changed")
    second = store.pack(tmp_path / "disk")
    assert 1 <= len(set(store.pieces) - before) <= 4
    store.unpack(second, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(tmp_path / "disk")


def test_the_same_content_has_another_name_for_everybody_else(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/file").write_bytes(b"the same")
    ours, theirs = Store(), Store()
    ours.pack(tmp_path / "disk")
    theirs.pack(tmp_path / "disk", key=DataKey(new_key()))
    assert not ours.pieces.keys() & theirs.pieces.keys()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2), st.sampled_from(["flip", "cut", "grow", "swap", "gone"]), st.integers(0, 1 << 62))
def test_no_changed_piece_is_taken(tmp_path_factory: pytest.TempPathFactory, which: int, how: str, place: int) -> None:
    folder = tmp_path_factory.mktemp("one")
    (folder / "a").write_bytes(b"one" * 1000)
    (folder / "b").write_bytes(os.urandom(300_000))
    store = Store()
    manifest = store.pack(folder)
    name = sorted(store.pieces)[which]
    sealed = store.pieces[name]
    if how == "flip":
        bit = place % (len(sealed) * 8)
        store.pieces[name] = sealed[: bit // 8] + bytes([sealed[bit // 8] ^ 1 << bit % 8]) + sealed[bit // 8 + 1 :]
    elif how == "cut":
        store.pieces[name] = sealed[: place % len(sealed)]
    elif how == "grow":
        store.pieces[name] = sealed + bytes(1 + place % 9)
    elif how == "swap":
        store.pieces[name] = next(other for key, other in store.pieces.items() if key != name)
    else:
        del store.pieces[name]
    with pytest.raises(DamagedError, match=name.hex()[:16]) as refused:
        Unpacker(KEY, manifest, store.fetch).verify()
    assert refused.value.pieces == (name.hex(),)
    with pytest.raises(DamagedError):
        store.unpack(manifest, folder.with_name(f"{folder.name}-again"))


def test_every_damaged_piece_is_named(packed: tuple[Store, Manifest]) -> None:
    store, manifest = packed
    broken = manifest.body.content[:3]
    for name in broken:
        store.pieces[name] = b"\0" * 100
    with pytest.raises(DamagedError, match="and 2 more") as refused:
        Unpacker(KEY, manifest, store.fetch).verify()
    assert refused.value.pieces == tuple(name.hex() for name in broken)


def test_content_is_no_index(tmp_path: Path) -> None:
    """A guest writes an index into a file of its own: its piece does not pass as one."""
    (tmp_path / "disk").mkdir()
    evil = write_entry(Entry(0, b"", "d", 0o755)) + write_entry(Entry(0, b"evil", "f", 0o4755))
    (tmp_path / "disk/index").write_bytes(evil)
    store = Store()
    manifest = store.pack(tmp_path / "disk")
    swapped = replace(manifest, body=replace(manifest.body, index=manifest.body.content, entries=2))
    with pytest.raises(DamagedError, match="does not hold what its name says"):
        Unpacker(KEY, swapped, store.fetch).verify()


# -- manifests


def _manifest() -> bytes:
    return fmt.write_manifest(HEAD, Body(1, 0, (b"i" * 32,), (b"c" * 32,), record={"name": "dev"}), KEY, SIGNING)


def test_a_manifest_says_what_was_written() -> None:
    found = read_manifest(_manifest(), KEY, SIGNING)
    assert found.head == HEAD
    assert found.body == Body(1, 0, (b"i" * 32,), (b"c" * 32,), record={"name": "dev"})
    assert b"dev" not in _manifest(), "names and environment are sealed"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_changed_manifest_is_taken(data: st.DataObject) -> None:
    whole = _manifest()
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, len(whole) * 8 - 1))
        changed = whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :]
    else:
        changed = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(DamagedError):
        read_manifest(changed, KEY, SIGNING)


def test_a_manifest_of_somebody_else_is_none_of_ours() -> None:
    with pytest.raises(DamagedError, match="signed with another key"):
        read_manifest(_manifest(), KEY, b"t" * 32)
    with pytest.raises(DamagedError, match="sealed with another key"):
        read_manifest(_manifest(), DataKey(new_key()), SIGNING)
    newer = fmt.write_manifest(replace(HEAD, format=3), Body(1, 0, (), ()), KEY, SIGNING)
    with pytest.raises(DamagedError, match="of format 3"):
        read_manifest(newer, KEY, SIGNING)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
_BODY_KEYS = ("entries", "size", "index", "content", "memory", "needs", "record")


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(_BODY_KEYS, _JSON)))
def test_a_signed_body_of_nonsense_is_refused_in_words(data: dict[str, object]) -> None:
    """As an import from another installation may hold."""
    try:
        fmt.body_from_json(data)
    except DamagedError:
        return
    assert set(data) == set(_BODY_KEYS)


# -- entries

_ROOT = write_entry(Entry(0, b"", "d", 0o755))


def _read(*lines: bytes) -> list[Entry]:
    return list(read_entries(iter([b"".join((_ROOT, *lines))]), 1 + len(lines), 2))


def _line(**changes: object) -> bytes:
    plain = {"p": 0, "n": "name", "k": "f", "m": 0o644, "u": 0, "g": 0, "t": 0, "s": 0}
    return json.dumps({key: value for key, value in {**plain, **changes}.items() if value is not None}).encode() + b"\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"n": ".."},
        {"n": "."},
        {"n": ""},
        {"n": "a/b"},
        {"n": "/etc"},
        {"n": "a\0b"},
        {"n": "x" * 256},
        {"n": 7},
        {"p": 1},
        {"p": -1},
        {"p": True},
        {"p": "0"},
        {"k": "z"},
        {"k": "ff"},
        {"k": None},
        {"m": 0o10000},
        {"m": -1},
        {"u": 0xFFFFFFFF},
        {"g": 1 << 40},
        {"t": 1 << 63},
        {"t": 1.5},
        {"s": -1},
        {"s": 1 << 63},
        {"s": None},
        {"s": 10, "a": [2, 0]},
        {"s": 10, "a": [0, 1 << 20]},
        {"s": 10, "a": [0]},
        {"s": 1 << 20, "c": [[1, 0]]},
        {"s": 3 << 20, "c": [[1, 0], [1, 1]]},
        {"s": 3 << 20, "c": [[1, 0], [0, 1]]},
        {"s": 3 << 20, "c": [[0, 2]]},
        {"k": "l", "l": ""},
        {"k": "l", "l": "a\0b"},
        {"k": "l", "l": "x" * 4096},
        {"k": "h", "h": 0},
        {"k": "h", "h": 1},
        {"k": "h", "h": 5},
        {"k": "c", "d": [1]},
        {"k": "c", "d": [-1, 0]},
        {"x": {"trusted.overlay.opaque": "eQ=="}},
        {"x": {"security.selinux": "eQ=="}},
        {"x": {"user.a": "not base64!"}},
        {"x": {f"user.{n}": "" for n in range(200)}},
        {"x": ["user.a"]},
    ],
)
def test_an_entry_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DamagedError, match="entry 1"):
        _read(_line(**changes))


def test_entries_lie_in_folders_and_as_many_as_were_said() -> None:
    with pytest.raises(DamagedError, match="no folder"):
        _read(_line(), _line(p=1, n="below a file"))
    with pytest.raises(DamagedError, match="fewer"):
        list(read_entries(iter([_ROOT]), 2, 0))
    with pytest.raises(DamagedError, match="more"):
        list(read_entries(iter([_ROOT + _line()]), 1, 0))
    deep = [_line(p=number, n="d", k="d") for number in range(fmt.DEEPEST + 1)]
    with pytest.raises(DamagedError, match="deeper"):
        _read(*deep)
    assert len(_read(*deep[:-1])) == fmt.DEEPEST + 1
    with pytest.raises(DamagedError, match="cannot be read"):
        list(read_entries(iter([b"[" * 100_000 + b"\n"]), 1, 0))


def test_a_link_in_the_way_is_never_followed(tmp_path: Path) -> None:
    """A name twice, first as a link that leads out: the second is refused, and nothing is written through it."""
    (tmp_path / "outside").mkdir()
    store = Store()
    lines = _ROOT + _line(n="way", k="l", l=str(tmp_path / "outside")) + _line(n="way", k="d") + _line(p=2, n="evil")
    name = KEY.name(b"index", lines)
    store.put(name, KEY.seal(name, lines))
    with pytest.raises(FileExistsError):
        store.unpack(Manifest(HEAD, Body(4, 0, (name,), ()), ""), tmp_path / "root")
    assert list((tmp_path / "outside").iterdir()) == []


def test_devices_are_recorded_and_not_made(tmp_path: Path) -> None:
    store = Store()
    lines = _ROOT + _line(n="sda", k="b", d=[8, 0]) + _line(n="same", k="h", h=1)
    name = KEY.name(b"index", lines)
    store.put(name, KEY.seal(name, lines))
    assert store.unpack(Manifest(HEAD, Body(3, 0, (name,), ()), ""), tmp_path / "root") == 2
    assert list((tmp_path / "root").iterdir()) == []


def test_files_larger_than_was_said_are_refused(tmp_path: Path) -> None:
    store = Store()
    lines = _ROOT + _line(s=1 << 40)
    name = KEY.name(b"index", lines)
    store.put(name, KEY.seal(name, lines))
    with pytest.raises(DamagedError, match="larger than the manifest says"):
        store.unpack(Manifest(HEAD, Body(2, 1 << 20, (name,), ()), ""), tmp_path / "root")


def test_a_bomb_does_not_go_off() -> None:
    from zstandard import ZstdCompressor

    bomb = DataKey(bytes(32))
    name = bomb.name(b"content", b"")
    bomb._pack = ZstdCompressor(level=19)
    with pytest.raises(DamagedError, match="larger than it may be"):
        bomb.open(b"content", name, bomb.seal(name, bytes(64 << 20)), fmt.PIECE)


# -- keys


def test_a_wrapped_key_opens_for_its_owner_alone() -> None:
    key, project = new_key(), new_key()
    wrapped = wrap(key, project, "sbx_a")
    assert unwrap(wrapped, project, "sbx_a") == key
    for other in (
        (wrapped, new_key(), "sbx_a"),
        (wrapped, project, "sbx_b"),
        (wrapped[:-2], project, "sbx_a"),
        ("zz", project, "sbx_a"),
    ):
        with pytest.raises(DamagedError, match="does not open"):
            unwrap(*other)


def test_keys_of_the_node_are_made_once_and_are_nobody_elses(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys")
    first = ring.project("prj_0123456789abcdefghij")
    assert KeyRing(tmp_path / "keys").project("prj_0123456789abcdefghij") == first != ring.signing()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()} == {0o600}
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
