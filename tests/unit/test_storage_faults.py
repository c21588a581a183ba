"""A disk under the node that is full, fails, or gives back other bytes than it was given: nothing is taken for written that
is not, nothing damaged is believed, what runs goes on, and it works again when the fault is gone."""

import contextlib
import errno
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandkeep.domain.errors import NoCapacity, StorageFailed
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import FactKind, SandboxOnNode, TemplateOnNode
from sandkeep.domain.sandbox import Persistence, Phase, RuntimeKind, Spec
from sandkeep.drivers.fake.clock import FakeClock
from sandkeep.engine.feed import Feed
from sandkeep.engine.journal import Journal
from sandkeep.engine.records import Generation, Record, Records
from sandkeep.store.database import Database
from sandkeep.testing.platform import LocalPlatform, platform

pytestmark = [pytest.mark.anyio, pytest.mark.requires("btrfs")]


def record(**fields: Any) -> Record:
    spec = Spec(new_id(IdKind.TEMPLATE), "base", RuntimeKind.GVISOR, Persistence.FULL, env={"A": "b"})
    sandbox = SandboxOnNode(new_id(IdKind.SANDBOX), new_id(IdKind.PROJECT), spec, "dev")
    return Record(sandbox, 3, 7, "secret", **fields)


def loaded(folder: Path) -> Records:
    records = Records(folder)
    records.load()
    return records


def test_no_flipped_bit_of_a_record_is_believed(tmp_path: Path) -> None:
    kept = Generation("gen_x", 1.5, {"pages.img": "12:ab"}, {"version": "1"})
    written = loaded(tmp_path).save(record(phase=Phase.PAUSED, generation=kept))
    path = tmp_path / "sandboxes" / f"{written.id}.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        found = loaded(tmp_path)
        assert found.sandboxes.get(written.id) in (None, written), f"byte {place}: {found.sandboxes}"
        assert written.id in found.sandboxes or found.unreadable == [written.id]
    path.write_bytes(whole)
    assert loaded(tmp_path).sandboxes == {written.id: written}


@pytest.mark.parametrize("cut", [1, 2, 40, 400])
def test_a_truncated_record_is_set_aside_and_an_explicit_delete_still_works(tmp_path: Path, cut: int) -> None:
    written = loaded(tmp_path).save(record())
    path = tmp_path / "sandboxes" / f"{written.id}.json"
    path.write_bytes(path.read_bytes()[:-cut])
    found = loaded(tmp_path)
    assert (found.sandboxes, found.unreadable) == ({}, [written.id])
    found.set_aside()
    assert loaded(tmp_path).unreadable == [written.id]
    found.resolve_unreadable(written.id, forget=True)
    assert loaded(tmp_path).unreadable == []
    assert not path.exists()


def test_records_from_before_checksums_are_read(tmp_path: Path) -> None:
    written = loaded(tmp_path).save(record())
    template = TemplateOnNode(new_id(IdKind.TEMPLATE), "base", 1.0, 5)
    loaded(tmp_path).save_template(template)
    for path in tmp_path.glob("*/*.json"):
        data = json.loads(path.read_bytes())
        assert data.pop("checksum")
        path.write_text(json.dumps(data))
    found = loaded(tmp_path)
    assert (found.sandboxes, found.templates) == ({written.id: written}, {template.id: template})


@contextlib.contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, call: str, number: int, after: int = 0) -> Iterator[None]:
    """The disk: every such call but the first `after` ones fails with that errno, as it does for every program."""
    real, seen = getattr(os, call), 0

    def fails(*arguments: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen > after:
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        yield


ERRORS = [(errno.ENOSPC, NoCapacity), (errno.EIO, StorageFailed), (errno.EROFS, StorageFailed)]


@pytest.mark.parametrize(("number", "kind"), ERRORS)
@pytest.mark.parametrize(("call", "after"), [("open", 0), ("write", 0), ("fsync", 0), ("fsync", 1), ("rename", 0)])
def test_a_record_that_was_not_written_leaves_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], call: str, after: int
) -> None:
    """`fsync`, the second: the new one has its name already, and whether that lasts is unknown."""
    records = loaded(tmp_path)
    before = records.save(record())
    with failing(monkeypatch, call, number, after), pytest.raises(kind):
        records.save(before.with_outcome("opr_1", None))
    assert records.sandboxes[before.id] == before
    if not after:  # else it could not be put back either: the next write, or a restart, shows which one lasted
        assert loaded(tmp_path).sandboxes == {before.id: before}
    again = records.save(before.with_outcome("opr_2", None))
    assert loaded(tmp_path).sandboxes == {before.id: again}


@pytest.mark.parametrize(("number", "kind"), ERRORS)
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_an_intent_that_was_not_written_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], call: str
) -> None:
    journal = Journal(tmp_path / "journal")
    assert journal.interrupted() == []
    operation = new_id(IdKind.OPERATION)
    held = set(os.listdir("/proc/self/fd"))
    with failing(monkeypatch, call, number), pytest.raises(kind):
        journal.begin(operation, "stop", "sbx_1")
    assert set(os.listdir("/proc/self/fd")) == held
    assert journal.interrupted() == []
    journal.begin(operation, "stop", "sbx_1").close()


def test_a_step_that_was_not_written_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal")
    journal.interrupted()
    entry = journal.begin(new_id(IdKind.OPERATION), "stop", "sbx_1")
    entry.step("one")
    with failing(monkeypatch, "write", errno.ENOSPC), pytest.raises(NoCapacity):
        entry.step("two")
    assert Journal(tmp_path / "journal").interrupted()[0].steps == ("one",)


def test_a_fact_that_was_not_written_spoils_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Feed(tmp_path / "feed", FakeClock())
    feed.open()
    feed.tell(FactKind.MACHINE_EXITED, "sbx_1")
    with failing(monkeypatch, "fsync", errno.EIO), pytest.raises(StorageFailed):
        feed.tell(FactKind.MACHINE_EXITED, "sbx_2")
    last = feed.tell(FactKind.MACHINE_EXITED, "sbx_3")
    again = Feed(tmp_path / "feed", FakeClock())
    again.open()
    assert [(fact.seq, fact.sandbox_id) for fact in again._facts] == [(1, "sbx_1"), (2, "sbx_3")]
    assert last.seq == 2


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 4 MiB, and a file in it that a test lets grow."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], check=True)
    try:
        yield folder / "filler"
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(filler: Path) -> None:
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


async def test_a_full_disk_under_the_database_is_507_and_passes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "db") as filler:
        database = Database(f"sqlite+aiosqlite:///{filler.parent}/test.db")
        await database.open()
        await database.check()
        fill(filler)
        from sqlalchemy import text

        async def write() -> None:
            async with database.transaction() as transaction:
                await transaction.execute(text("CREATE TABLE big AS SELECT randomblob(3000000) AS data"))

        with pytest.raises(NoCapacity, match="full"):
            await write()
        async with database.transaction() as transaction:  # reads work
            assert (await transaction.execute(text("SELECT count(*) FROM sandboxes"))).scalar() == 0
        filler.unlink()
        await database.check()
        async with database.transaction() as transaction:
            await transaction.execute(text("CREATE TABLE small (data)"))
        await database.close()


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalPlatform]:
    with small_disk(tmp_path / "platform/node") as filler:
        async with platform(tmp_path / "platform") as made:
            made.filler = filler  # type: ignore[attr-defined]
            yield made


async def test_a_full_disk_under_the_node_refuses_changes_and_harms_nothing(local: LocalPlatform) -> None:
    filler: Path = local.filler  # type: ignore[attr-defined]
    made = [(await local.http.post("/v1/sandboxes", json={"persistence": p})).json() for p in ("full", "volume")]
    machines = set(local.kernels[RuntimeKind.GVISOR].machines)
    fill(filler)
    local.clock.advance(3)
    for request in (
        local.http.post("/v1/sandboxes", json={}),
        local.http.post(f"/v1/sandboxes/{made[0]['id']}/pause"),
        local.http.post(f"/v1/sandboxes/{made[1]['id']}/stop"),
        local.http.patch(f"/v1/sandboxes/{made[1]['id']}", json={"labels": {"a": "b"}}),
    ):
        answer = await request
        assert (answer.status_code, answer.json()["code"]) == (507, "no_capacity"), answer.text
        assert "room" in answer.json()["hint"] and answer.headers["retry-after"]
    ready = await local.http.get("/readyz")
    assert (ready.status_code, "full" in ready.json()["reason"]) == (503, True)
    for sandbox in made:
        assert (await local.http.get(f"/v1/sandboxes/{sandbox['id']}")).json()["phase"] == "running"
    assert set(local.kernels[RuntimeKind.GVISOR].machines) == machines
    filler.unlink()
    local.clock.advance(3)
    assert (await local.http.get("/readyz")).status_code == 200
    paused = (await local.http.post(f"/v1/sandboxes/{made[0]['id']}/pause")).json()
    assert (paused["phase"], paused["hold"]) == ("paused", "disk")
    for sandbox in made:
        assert (await local.http.delete(f"/v1/sandboxes/{sandbox['id']}")).status_code == 204
    assert (await local.node.fsck())["findings"] == []


async def test_many_who_ask_at_once_whether_the_disk_is_well_do_not_disturb_each_other(local: LocalPlatform) -> None:
    said = []

    async def ask() -> None:
        said.append(await local.node.storage())

    for _ in range(5):
        local.clock.advance(100)
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(ask)
    assert said == [""] * 100


async def test_a_machine_that_ends_while_the_disk_is_full_is_noted_when_it_is_not(local: LocalPlatform) -> None:
    filler: Path = local.filler  # type: ignore[attr-defined]
    made = (await local.http.post("/v1/sandboxes", json={"on_failure": "stop"})).json()
    fill(filler)
    gvisor = local.runtimes[RuntimeKind.GVISOR]
    gvisor.die(next(iter(gvisor.kernel.machines)))
    ask = f"/v1/sandboxes/{made['id']}"
    local.clock.advance(6)
    await anyio.sleep(0.1)
    assert (await local.http.get(ask)).json()["phase"] == "running"
    filler.unlink()
    with anyio.fail_after(10):
        while (await local.http.get(ask)).json()["phase"] != "stopped":
            local.clock.advance(6)
            await anyio.sleep(0.02)
    assert (await local.http.post(f"{ask}/start")).json()["phase"] == "running"


async def test_a_damaged_record_quarantines_the_disk_until_its_owner_deletes_it(local: LocalPlatform) -> None:
    made = (await local.http.post("/v1/sandboxes", json={})).json()
    await local.kill_node()
    path = local.folder / "node/sandboxes" / f"{made['id']}.json"
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b'"epoch"') + 1] ^= 1
    path.write_bytes(damaged)
    await local.start_node()
    kinds = {finding["kind"] for finding in (await local.node.fsck())["findings"]}
    assert {"record.unreadable", "disk.unowned"} <= kinds
    assert made["id"] in (await local.disks.contents()).disks
    assert (await local.http.delete(f"/v1/sandboxes/{made['id']}")).status_code == 204
    assert (await local.disks.contents()).disks == {}
    assert (await local.node.fsck())["findings"] == []
