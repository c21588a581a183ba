"""What the engine keeps on disk, after every way in which a crash can leave it."""

import json
import os
from pathlib import Path

import pytest

from sandkeep.domain.errors import NoCapacity
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import FactKind, SandboxOnNode
from sandkeep.domain.sandbox import Persistence, Phase, RuntimeKind, Spec
from sandkeep.engine.deletions import Deletions
from sandkeep.engine.feed import Feed
from sandkeep.engine.journal import Journal
from sandkeep.engine.records import Generation, Record, Records
from sandkeep.engine.slots import REST, Slots
from sandkeep.lib.files import read_plain
from support.clock import StillClock

pytestmark = pytest.mark.anyio


def journal(folder: Path) -> Journal:
    made = Journal(folder / "journal")
    assert made.interrupted() == []
    return made


def test_the_journal_names_what_was_interrupted(tmp_path: Path) -> None:
    kept, done = new_id(IdKind.OPERATION), new_id(IdKind.OPERATION)
    made = journal(tmp_path)
    entry = made.begin(kept, "pause", "sbx_1", hold="disk")
    entry.step("network.reset")
    entry.step("memory.save", file="x")
    made.begin(done, "stop", "sbx_2").close()
    (found,) = Journal(tmp_path / "journal").interrupted()
    assert (found.operation, found.verb, found.subject, found.facts) == (kept, "pause", "sbx_1", {"hold": "disk"})
    assert found.steps == ("network.reset", "memory.save")


@pytest.mark.parametrize("cut", range(2, 60, 7))
def test_a_torn_last_line_is_dropped_and_a_torn_intent_means_that_nothing_was_done(tmp_path: Path, cut: int) -> None:
    made = journal(tmp_path)
    operation = new_id(IdKind.OPERATION)
    entry = made.begin(operation, "stop", "sbx_1")
    path = tmp_path / "journal" / f"{operation}.journal"
    whole = path.read_bytes()
    entry.step("machine.end")
    path.write_bytes(path.read_bytes()[:-cut])
    found = Journal(tmp_path / "journal").interrupted()
    if len(path.read_bytes() if path.exists() else b"") >= len(whole):
        assert [item.steps for item in found] == [()]
    else:
        assert found == []
        assert not path.exists()


def test_a_flipped_bit_ends_the_journal_there(tmp_path: Path) -> None:
    made = journal(tmp_path)
    operation = new_id(IdKind.OPERATION)
    entry = made.begin(operation, "stop", "sbx_1")
    entry.step("one")
    entry.step("two")
    path = tmp_path / "journal" / f"{operation}.journal"
    path.write_bytes(path.read_bytes().replace(b'"one"', b'"onf"'))
    assert Journal(tmp_path / "journal").interrupted()[0].steps == ()


def record(**fields: object) -> Record:
    spec = Spec(new_id(IdKind.TEMPLATE), "base", RuntimeKind.GVISOR, Persistence.FULL, env={"A": "b"})
    sandbox = SandboxOnNode(new_id(IdKind.SANDBOX), new_id(IdKind.PROJECT), spec, "dev")
    return Record(sandbox, 3, 7, "secret", **fields)  # type: ignore[arg-type]


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    written = record(
        phase=Phase.PAUSED,
        generation=Generation("gen_x", 1.5, {"pages.img": "12:ab"}, {"version": "1"}),
        outcomes={"opr_1": None, "opr_2": {"code": "busy", "message": "m", "hint": None}},
    )
    records = Records(tmp_path)
    records.load()
    records.save(written)
    again = Records(tmp_path)
    again.load()
    assert again.sandboxes == {written.id: written}
    assert "secret" not in repr(written)
    assert (tmp_path / "sandboxes" / f"{written.id}.json").stat().st_mode & 0o777 == 0o600


def test_an_unreadable_record_is_set_aside_and_the_others_are_read(tmp_path: Path) -> None:
    good, bad = record(), record()
    records = Records(tmp_path)
    records.load()
    records.save(good)
    records.save(bad)
    path = tmp_path / "sandboxes" / f"{bad.id}.json"
    path.write_bytes(path.read_bytes()[:40])
    again = Records(tmp_path)
    again.load()
    assert set(again.sandboxes) == {good.id}
    assert again.unreadable == [bad.id]
    assert path.exists()


def test_a_record_that_goes_while_it_is_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, going = record(), record()
    records = Records(tmp_path)
    records.load()
    records.save(here)
    records.save(going)

    def read(path: Path) -> bytes:
        if path.stem == going.id:
            path.unlink()
        return read_plain(path)

    monkeypatch.setattr("sandkeep.engine.records.read_plain", read)
    again = Records(tmp_path)
    again.load()
    assert (set(again.sandboxes), again.unreadable) == ({here.id}, [])


@pytest.mark.parametrize("what", ["folder", "dangling link", "link loop", "FIFO"])
def test_what_is_no_file_is_set_aside_and_holds_nothing_up(tmp_path: Path, what: str) -> None:
    def put(path: Path) -> None:
        match what:
            case "folder":
                path.mkdir(parents=True)
            case "FIFO":
                os.mkfifo(path)
            case _:
                path.symlink_to("nowhere" if what == "dangling link" else path.name)

    good, bad = record(), new_id(IdKind.SANDBOX)
    records = Records(tmp_path)
    records.load()
    records.save(good)
    put(tmp_path / "sandboxes" / f"{bad}.json")
    put(tmp_path / "templates" / f"{new_id(IdKind.TEMPLATE)}.json")
    again = Records(tmp_path)
    again.load()
    again.set_aside()
    assert (set(again.sandboxes), len(again.unreadable)) == ({good.id}, 2)
    assert os.path.lexists(tmp_path / "unreadable" / f"{bad}.json")

    folder = tmp_path / "node" / "journal"
    folder.mkdir(parents=True)
    put(folder / f"{new_id(IdKind.OPERATION)}.journal")
    kept = Journal(folder).begin(new_id(IdKind.OPERATION), "stop", good.id)
    kept.step("machine.end")
    assert [item.verb for item in Journal(folder).entries()] == ["stop"]
    assert [item.verb for item in Journal(folder).interrupted()] == ["stop"]

    put(tmp_path / "deleted.log")
    deletions = Deletions(tmp_path / "deleted.log", StillClock())
    assert deletions.among([bad]) == {}
    deletions.open()
    deletions.add(bad)
    assert list(deletions.among([bad, good.id])) == [bad]
    deletions.close()

    put(tmp_path / "feed")
    feed = Feed(tmp_path / "feed", StillClock())
    feed.open()
    assert feed.tell(FactKind.QUARANTINED, None).seq > 1000, "a server has seen lower ones"
    feed.close()


@pytest.mark.parametrize(
    "line",
    [
        b'{"seq":9,"at":1.0,"kind":"machine.exitef","sandbox_id":null,"epoch":null,"data":{}}',
        b"7",
        b'{"acknowledged": 3}',
        b'{"seq":"x","at":1.0,"kind":"machine.exited","sandbox_id":null,"epoch":null,"data":{}}',
        b"\xff\xfe",
    ],
)
def test_news_that_cannot_be_read_keep_no_node_down(tmp_path: Path, line: bytes) -> None:
    feed = Feed(tmp_path / "feed", StillClock())
    feed.open()
    told = feed.tell(FactKind.MACHINE_EXITED, None)
    feed.close()
    (tmp_path / "feed").write_bytes(line + b"\n" + (tmp_path / "feed").read_bytes())
    again = Feed(tmp_path / "feed", StillClock())
    again.open()
    assert again.tell(FactKind.QUARANTINED, None).seq > told.seq
    (tmp_path / "feed").write_bytes(line + b"\n")
    lost = Feed(tmp_path / "feed", StillClock())
    lost.open()
    assert lost.tell(FactKind.QUARANTINED, None).seq > told.seq + 1


def test_old_outcomes_are_forgotten(tmp_path: Path) -> None:
    written = record()
    for number in range(40):
        written = written.with_outcome(f"opr_{number}", None)
    assert len(written.outcomes) <= 16
    assert "opr_39" in written.outcomes


async def test_facts_survive_a_restart_until_they_are_acknowledged(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "feed", StillClock())
    feed.open()
    first, second = (feed.tell(FactKind.MACHINE_EXITED, f"sbx_{n}", 1, reason="x") for n in range(2))
    feed.acknowledge(first.seq)
    with open(tmp_path / "feed", "ab") as file:
        file.write(b'{"seq": 3, "at": 1')  # torn by a crash
    again = Feed(tmp_path / "feed", StillClock())
    again.open()
    seen = []
    async for fact in again.watch(0):
        seen.append(fact)
        again.close()
    assert seen == [second]
    assert again.tell(FactKind.QUARANTINED, None).seq == second.seq + 1


def test_a_slot_rests_before_it_is_used_again(tmp_path: Path) -> None:
    clock = StillClock()
    slots = Slots(tmp_path / "slots.json", 2, clock)
    slots.open(set())
    first, second = slots.lease(), slots.lease()
    assert {first, second} == {1, 2}
    with pytest.raises(NoCapacity):
        slots.lease()
    slots.release(first)
    with pytest.raises(NoCapacity):
        slots.lease()
    again = Slots(tmp_path / "slots.json", 2, clock)
    again.open({second})
    with pytest.raises(NoCapacity):
        again.lease()
    clock.time += REST + 1
    assert again.lease() == first


def test_a_clock_that_jumped_back_keeps_no_slot_for_ever(tmp_path: Path) -> None:
    clock = StillClock()
    slots = Slots(tmp_path / "slots.json", 1, clock)
    slots.open(set())
    slots.release(slots.lease())
    clock.time -= 86400
    assert slots.lease() == 1


def test_slots_without_a_readable_file_go_on_behind_the_used_ones(tmp_path: Path) -> None:
    (tmp_path / "slots.json").write_text(json.dumps({"next": "x"}))
    slots = Slots(tmp_path / "slots.json", 10, StillClock())
    slots.open({3})
    assert slots.lease() == 4


def test_a_write_that_was_killed_leaves_nothing(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.load()
    half = tmp_path / "templates" / ".tpl_1.json.new"
    half.write_text("{")
    records.load()
    assert half.exists(), "whoever only looks removes nothing: somebody may be writing"
    records.discard_unfinished()
    assert not half.exists()
