"""What the store promises on both databases: one owner, one transaction after the other, words for what is away."""

import os
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import text

from sandkeep.control.keys import grant
from sandkeep.domain.errors import AlreadyExists, Conflict, InvalidArgument, SandkeepError, StorageFailed, Unavailable
from sandkeep.domain.event import EventKind
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.quantities import GIB
from sandkeep.domain.sandbox import Limits, Phase, Sandbox, Spec, Status
from sandkeep.domain.snapshot import Cause, Snapshot, SnapshotKind, SnapshotPhase
from sandkeep.domain.template import Template, TemplatePhase
from sandkeep.domain.timeline import Keep, Timeline
from sandkeep.store import events, keys, nodes, sandboxes, snapshots, templates
from sandkeep.store.database import Database
from sandkeep.testing.platform import platform
from support.postgres import PORT, Postgres

pytestmark = pytest.mark.anyio


@pytest.fixture
async def database(database_url: str) -> Any:
    opened = Database(database_url)
    await opened.open()
    yield opened
    await opened.close()


def a_sandbox(name: str | None, **fields: Any) -> Sandbox:
    spec = Spec("tpl_x", "base", limits=Limits(memory=3 * GIB, disk=64 * GIB), **fields)
    return Sandbox(
        new_id(IdKind.SANDBOX),
        "prj_x",
        name,
        spec,
        Status(Phase.RUNNING, since=5.5),
        epoch=1,
        created_at=1.25,
        updated_at=2,
    )


async def test_what_is_written_is_read_back(database: Database) -> None:
    sandbox = a_sandbox("one", env={"A": "ü€\n", "B": 'back\\slash "quote"'}, labels={"team": "red", "x": ""})
    template = Template("tpl_1", "prj_x", "mine", TemplatePhase.READY, 1.5, size=5 << 40, steps=("a", "b"), log="built")
    async with database.transaction() as t:
        await sandboxes.add(t, sandbox)
        await templates.add(t, template)
        await nodes.save_last_fact(t, "node-1", "prj_x", 1 << 40)
        told = await events.add(
            t,
            project_id="prj_x",
            at=3.5,
            kind=EventKind.SANDBOX_CREATED,
            subject=sandbox.id,
            reason="r",
            data={"n": [1, None]},
        )
    async with database.transaction() as t:
        assert await sandboxes.get(t, "prj_x", "one") == sandbox
        assert await sandboxes.get(t, "prj_other", "one") is None
        assert await templates.get(t, "prj_x", "mine") == template
        assert await nodes.last_fact(t, "node-1") == 1 << 40
        assert await events.page(t, "prj_x", after=0, limit=10) == [told]
        for labels, count in (
            ({"team": "red"}, 1),
            ({"team": "blue"}, 0),
            ({"team": "red", "x": ""}, 1),
            ({"y": ""}, 0),
        ):
            found = await sandboxes.page(t, "prj_x", limit=9, after=None, labels=labels, phases=[], name=None)
            assert len(found) == count, labels


async def test_timelines_and_snapshots_are_read_back(database: Database) -> None:
    timeline = Timeline(
        every=3600.5,
        on_crash=True,
        keep=Keep(last=2, monthly=12),
        keep_tags=("ü", "b"),
        min_age=60.0,
        budget=5 << 40,
        asked_too=True,
    )
    ruled, plain, fork = a_sandbox("ruled", timeline=timeline), a_sandbox("plain"), a_sandbox("fork")
    fork = replace(fork, origin="snp_2", status=Status(Phase.STARTING))
    made = [
        Snapshot(
            f"snp_{number}", "prj_x", ruled.id, None, SnapshotKind.DISK, ("t",), None, SnapshotPhase.READY, "", number,
            cause=cause,
        )
        for number, cause in enumerate(Cause)
    ]  # fmt: skip
    async with database.transaction() as t:
        for one in (ruled, plain, fork):
            await sandboxes.add(t, one)
        for snapshot in made:
            await snapshots.add(t, snapshot)
    async with database.transaction() as t:
        assert await sandboxes.get(t, "prj_x", "ruled") == ruled
        assert await sandboxes.with_timeline(t) == [ruled]
        assert await snapshots.of(t, ruled.id) == made
        assert await snapshots.newest(t, [ruled.id, plain.id]) == {ruled.id: (len(made), len(made) - 1)}
        assert await sandboxes.being_forked(t) == {"snp_2"}
        off = replace(ruled, spec=replace(ruled.spec, timeline=Timeline()))
        assert await sandboxes.save(t, off, 1)
        assert await sandboxes.with_timeline(t) == []
        assert await sandboxes.by_id(t, ruled.id) == off


async def test_what_a_program_inside_prints_does_no_harm(database: Database) -> None:
    """The character NUL, which PostgreSQL cannot hold, and one more backslash than there seem to be."""
    template = Template("tpl_1", "prj_x", "mine", TemplatePhase.READY, 1.5, log="a\0b", steps=("x\0y", "\\u0000"))
    async with database.transaction() as t:
        await templates.add(t, template)
    async with database.transaction() as t:
        found = await templates.get(t, "prj_x", "mine")
        assert found is not None
        assert found.log.replace("\0", "\ufffd") == "a\ufffdb"
        assert [step.replace("\0", "\ufffd") for step in found.steps] == ["x\ufffdy", "\\u0000"]
        assert await templates.get(t, "prj_x", "no\0such") is None


async def test_pages_come_in_one_order(database: Database) -> None:
    made = [a_sandbox(None) for _ in range(7)]
    async with database.transaction() as t:
        for one in made:
            await sandboxes.add(t, one)
    seen: list[str] = []
    after = None
    async with database.transaction() as t:
        while page := await sandboxes.page(
            t, "prj_x", limit=2, after=after, labels={}, phases=[Phase.RUNNING], name=None
        ):
            seen += [one.id for one in page]
            after = (page[-1].created_at, page[-1].id)
    assert seen == sorted(one.id for one in made)


async def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    async def fail() -> None:
        async with database.transaction() as t:
            await sandboxes.add(t, a_sandbox("one"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    with anyio.CancelScope() as scope:
        async with database.transaction() as t:
            await sandboxes.add(t, a_sandbox("two"))
            scope.cancel()
            await anyio.sleep(0)
    async with database.transaction() as t:
        assert [one.name for one in await sandboxes.everywhere(t)] == ["two"]


async def test_a_name_is_given_once(database: Database) -> None:
    refused = []

    async def add() -> None:
        try:
            async with database.transaction() as t:
                await sandboxes.add(t, a_sandbox("one"))
        except AlreadyExists as error:
            refused.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(add)
    assert len(refused) == 19
    async with database.transaction() as t:
        assert len(await sandboxes.everywhere(t)) == 1


async def test_of_concurrent_changes_of_one_epoch_one_wins(database: Database) -> None:
    sandbox = a_sandbox("one")
    async with database.transaction() as t:
        await sandboxes.add(t, sandbox)
    won = []

    async def change(number: int) -> None:
        async with database.transaction() as t:
            current = await sandboxes.by_id(t, sandbox.id)
            assert current is not None
            if current.epoch == 1:
                await anyio.sleep(0)
                changed = Sandbox(**{**vars(current), "epoch": 2, "name": f"by{number}"})
                assert await sandboxes.save(t, changed, 1)
                won.append(number)
        async with database.transaction() as t:
            assert not await sandboxes.save(t, sandbox, 1)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(change, number)
    assert len(won) == 1


async def test_events_have_no_gap_and_no_number_twice(database: Database) -> None:
    async def tell() -> None:
        async with database.transaction() as t:
            await events.add(
                t, project_id="p", at=1, kind=EventKind.SANDBOX_CREATED, subject="s", reason="", data={}
            )  # fmt: skip

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(tell)
    async with database.transaction() as t:
        assert [one.seq for one in await events.page(t, "p", after=0, limit=99)] == list(range(1, 51))


async def create(http: Any, results: list[Any], **options: Any) -> None:
    results.append(await http.post("/v1/sandboxes", timeout=60, **options))


async def test_concurrent_creates_make_one(database_url: str, tmp_path: Path) -> None:
    """Get-or-create by name, and by Idempotency-Key."""
    async with platform(tmp_path / "platform", database_url) as local:
        for options in ({"json": {"name": "one"}}, {"json": {}, "headers": {"idempotency-key": "k"}}):
            results: list[Any] = []
            async with anyio.create_task_group() as tasks:
                for _ in range(12):
                    tasks.start_soon(lambda: create(local.http, results, **options))
            assert {answer.status_code for answer in results} <= {200, 201}
            assert len({answer.json()["id"] for answer in results}) == 1
            assert [answer.status_code for answer in results].count(201) == 1


async def test_a_grant_makes_a_key_once(database_url: str, tmp_path: Path) -> None:
    async with platform(tmp_path / "platform", database_url) as local:
        grants = tmp_path / "platform/run/grants"
        secret = grant(grants, "made by sandkeep up")
        assert secret not in "".join(path.name + path.read_text() for path in grants.iterdir())
        head = {"authorization": f"Bearer {secret}"}
        for _ in range(2):
            assert (await local.http.get("/v1/sandboxes", headers=head)).status_code == 200
        assert list(grants.iterdir()) == []
        listed = (await local.http.get("/v1/keys")).json()["items"]
        mine = [key for key in listed if key["prefix"] == secret[:9]]
        assert [key["name"] for key in mine] == ["made by sandkeep up"]
        assert (await local.http.delete(f"/v1/keys/{mine[0]['id']}")).status_code == 204
        assert (await local.http.get("/v1/sandboxes", headers=head)).status_code == 401


async def test_one_that_only_looks_changes_nothing(database: Database, database_url: str) -> None:
    async with database.transaction() as t:
        await sandboxes.add(t, a_sandbox("one"))
    looking = Database(database_url, read_only=True)
    try:
        assert await looking.look() is not None
        async with looking.transaction() as t:
            assert [found.name for found in await sandboxes.everywhere(t)] == ["one"]
            async with database.transaction() as writing:  # the owner is not held up
                await sandboxes.add(writing, a_sandbox("two"))
            assert len(await sandboxes.everywhere(t)) == 1  # one moment
        with pytest.raises(Exception, match=r"read-?only"):
            async with looking.transaction() as t:
                await sandboxes.add(t, a_sandbox("three"))
    finally:
        await looking.close()


@pytest.mark.requires("postgres")
async def test_a_second_server_is_refused_with_words(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandkeep.store.postgres._PATIENCE", "300ms")
    url = postgres.fresh()
    first, second = Database(url), Database(url)
    await first.open()
    with pytest.raises(Conflict, match="another server has this database"):
        await second.open()
    await second.close()
    await first.close()
    third = Database(url)
    await third.open()
    await third.close()


@pytest.mark.requires("postgres")
async def test_a_server_that_lost_its_connection_finds_that_another_took_over(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandkeep.store.postgres._PATIENCE", "300ms")
    url = postgres.fresh()
    first, second = Database(url), Database(url)
    await first.open()
    async with first.transaction() as t:
        pid = (await t.execute(text("SELECT pg_backend_pid()"))).scalar()
    postgres.sql(f"SELECT pg_terminate_backend({pid}, 5000)")
    await second.open()
    with pytest.raises(Unavailable, match="another server has this database"):
        async with first.transaction() as t:
            await t.execute(text("SELECT 1"))
    await second.close()
    with anyio.fail_after(10):
        while True:
            try:
                async with first.transaction() as t:
                    await t.execute(text("SELECT 1"))
                break
            except Unavailable:
                await anyio.sleep(0.05)
    await first.close()


@pytest.mark.requires("postgres")
async def test_a_database_that_is_away_is_unavailable_and_comes_back(postgres: Postgres) -> None:
    database = Database(postgres.fresh())
    await database.open()
    async with database.transaction() as t:
        await sandboxes.add(t, a_sandbox("kept"))
    postgres.kill()
    try:
        told: list[SandkeepError] = []

        async def ask() -> None:
            try:
                async with database.transaction() as t:
                    await sandboxes.everywhere(t)
            except Unavailable as error:
                told.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(ask)
        assert len(told) == 50
        assert all(error.retry_after for error in told)
    finally:
        postgres.start()
    with anyio.fail_after(20):
        while True:
            try:
                async with database.transaction() as t:
                    assert [one.name for one in await sandboxes.everywhere(t)] == ["kept"]
                break
            except Unavailable:
                await anyio.sleep(0.05)
    await database.close()


@pytest.mark.requires("postgres")
async def test_a_database_that_hangs_holds_nobody_for_ever(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandkeep.store.postgres._COMMAND", 0.5)
    database = Database(postgres.fresh())
    await database.open()
    async with database.transaction() as t:
        pid = (await t.execute(text("SELECT pg_backend_pid()"))).scalar()
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable):
            async with database.transaction() as t:
                await sandboxes.everywhere(t)
    finally:
        os.kill(pid, signal.SIGCONT)
    with anyio.fail_after(20):
        while True:
            try:
                async with database.transaction() as t:
                    await sandboxes.everywhere(t)
                break
            except Unavailable:
                await anyio.sleep(0.05)
    await database.close()


@pytest.mark.requires("postgres")
async def test_the_password_comes_from_url_or_file_and_is_never_told(
    postgres: Postgres, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = postgres.fresh().partition("@/")[2].partition("?")[0]
    for database in (
        Database(f"postgresql://owner:{postgres.password}@{postgres.address}/{name}"),
        Database(f"postgresql://owner@{postgres.address}/{name}", password=postgres.password),
    ):
        await database.open()
        await database.close()
    for url in (
        f"postgresql://owner:wrong-{postgres.password}@{postgres.address}/{name}",
        f"postgresql://owner:{postgres.password}@127.0.0.1:{PORT + 1}/{name}",
        f"postgresql://owner:{postgres.password}@{postgres.address}/nosuch",
    ):
        refused = Database(url)
        with pytest.raises(Unavailable) as told:
            await refused.open()
        await refused.close()
        assert postgres.password not in f"{told.value!r} {told.value.__cause__!r} {told.value.hint}"


@pytest.mark.parametrize(
    "url", ["mysql://x@y/z", "hello", "postgresql://u:secret@h:99999/x", "postgresql://u:secret@h:x/"]
)
async def test_a_url_that_cannot_be_understood_is_refused_without_telling_it(url: str) -> None:
    with pytest.raises(InvalidArgument) as told:
        Database(url)
    assert "secret" not in str(told.value)


async def test_a_file_that_is_no_database_is_refused_with_words(tmp_path: Path) -> None:
    (tmp_path / "wrong.db").write_bytes(b"this is a letter to my aunt, not a database\n" * 100)
    database = Database(f"sqlite:///{tmp_path}/wrong.db")
    with pytest.raises(Conflict, match="damaged"):
        await database.open()
    await database.close()
    assert (tmp_path / "wrong.db").read_bytes().startswith(b"this is a letter")


async def test_once_damage_was_met_it_is_not_ready_until_the_whole_reads_well(tmp_path: Path) -> None:
    file = tmp_path / "sandkeep.db"
    database = Database(f"sqlite:///{file}")
    await database.open()
    async with database.transaction() as t:
        await keys.add_project(t, "prj_1", "default", 1.0)
        root = (await t.execute(text("SELECT rootpage FROM sqlite_master WHERE name = 'projects'"))).scalar_one()
        size = (await t.execute(text("PRAGMA page_size"))).scalar_one()
    await database.close()
    whole = file.read_bytes()
    file.write_bytes(whole[: (root - 1) * size] + b"\xff" * size + whole[root * size :])
    database = Database(f"sqlite:///{file}")
    await database.open()
    await database.check()  # what nobody has read yet nobody knows
    with pytest.raises(StorageFailed, match="damaged"):
        async with database.transaction() as t:
            await t.execute(text("SELECT * FROM projects"))
    for _ in range(2):
        with pytest.raises(StorageFailed, match="damaged"):
            await database.check()
    await database.close()


async def test_only_one_process_writes_and_checkpoints(tmp_path: Path) -> None:
    """A look from outside leaves WAL and file as they are: also the last one to close it checkpoints nothing."""
    database = Database(f"sqlite:///{tmp_path}/sandkeep.db")
    await database.open()
    async with database.transaction() as t:
        await keys.add_project(t, "prj_1", "default", 1.0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if not path.name.endswith("-shm")}
    assert len(before["sandkeep.db-wal"]) > 0
    looking = Database(f"sqlite:///{tmp_path}/sandkeep.db", read_only=True)
    assert await looking.look() is not None
    assert await looking.damage() is None
    async with looking.transaction() as t:
        with pytest.raises(Exception, match="readonly"):
            await t.execute(text("DELETE FROM projects"))
    await looking.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if not path.name.endswith("-shm")} == before
    await database.close()
    with sqlite3.connect(tmp_path / "sandkeep.db") as connection:
        assert connection.execute("SELECT name FROM projects").fetchall() == [("default",)]
    connection.close()
