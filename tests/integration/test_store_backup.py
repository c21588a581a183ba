"""A backup carries every row from one kind of database to the other, whole or not at all."""

import hashlib
import io
import json
import stat
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import select, text

from sandkeep.app.backup import verify
from sandkeep.domain.errors import Conflict
from sandkeep.domain.event import EventKind
from sandkeep.lib.files import written_durably
from sandkeep.store import backup, events, keys
from sandkeep.store.database import Database
from sandkeep.store.migrations import HEAD
from sandkeep.store.tables import metadata
from sandkeep.testing.platform import platform

pytestmark = pytest.mark.anyio


async def rows_of(database: Database) -> dict[str, list[Any]]:
    async with database.transaction() as t:
        return {
            name: [tuple(row) for row in await t.execute(select(table).order_by(*table.primary_key.columns))]
            for name, table in metadata.tables.items()
        }


async def lines_of(database: Database) -> list[Any]:
    async with database.transaction() as t:
        return [json.loads(json.dumps(value)) async for value in backup.dump(t, {"taken_at": 0})]


def file_of(url: str) -> Path | None:
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite") else None


async def tell(database: Database, subject: str) -> int:
    async with database.transaction() as t:
        kind = EventKind.SANDBOX_CREATED
        return (await events.add(t, project_id="p", at=1, kind=kind, subject=subject, reason="", data={"a": [1]})).seq


@pytest.mark.parametrize("origin", ["sqlite", pytest.param("postgres", marks=pytest.mark.requires("postgres"))])
async def test_every_row_arrives(
    origin: str, database_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/from.db"
    if origin == "postgres":
        url = request.getfixturevalue("postgres").fresh()
    async with platform(tmp_path / "platform", url) as local:
        for number in range(3):
            made = await local.http.post(
                "/v1/sandboxes",
                json={"name": f"s{number}", "env": {"A": "ü"}, "labels": {"n": str(number)}, "ttl": "1h"},
                headers={"idempotency-key": f"k{number}"},
            )
            assert made.status_code == 201, made.text
    source, target = Database(url), Database(database_url)
    lines, before = await lines_of(source), await rows_of(source)
    await source.close()
    assert all(before[name] for name in ("projects", "keys", "sandboxes", "templates", "events", "idempotency"))

    async def fill(t: Any, above: int) -> dict[str, int]:
        return await backup.load(t, lines[0], lines[1:], later=100.0, above=above)

    counts, kept = await backup.replace(target, file_of(database_url), "20261127T000000Z", fill)
    await target.close()
    assert kept == ""
    assert counts == {name: len(rows) for name, rows in before.items()}
    restored = Database(database_url)
    await restored.open()
    after = await rows_of(restored)
    column = [item.name for item in metadata.tables["sandboxes"].columns].index("expires_at")
    assert [row[column] for row in after["sandboxes"]] == [row[column] + 100.0 for row in before["sandboxes"]]
    for rows in (before, after):
        rows["sandboxes"] = [row[:column] for row in rows["sandboxes"]]
    assert after == before
    assert await tell(restored, "next") == lines[0]["last_event"] + 1
    await restored.close()


async def test_what_was_there_is_kept_and_events_go_on_above_it(database_url: str, tmp_path: Path) -> None:
    database = Database(database_url)
    await database.open()
    await tell(database, "one")
    lines = await lines_of(database)
    async with database.transaction() as t:
        await keys.add_project(t, "prj_later", "later", 1.0)
    assert await tell(database, "two") == 2
    await database.close()

    async def fill(t: Any, above: int) -> dict[str, int]:
        return await backup.load(t, lines[0], lines[1:], later=0, above=above)

    database = Database(database_url)
    _, kept = await backup.replace(database, file_of(database_url), "20261127T000000Z", fill)
    await database.close()
    database = Database(database_url)
    await database.open()
    async with database.transaction() as t:
        assert await keys.project_by_name(t, "later") is None
        if database.kind == "postgresql":
            assert kept == "schema sandkeep_before_restore_20261127t000000z"
            found = await t.execute(text(f"SELECT name FROM {kept.split()[1]}.projects"))
            assert found.scalars().all() == ["later"]
    assert await tell(database, "three") == 3
    await database.close()
    if file_of(database_url):
        assert kept == f"{tmp_path}/sandkeep.db.before-restore-20261127T000000Z"
        former = Database(f"sqlite:///{kept}")
        async with former.transaction() as t:
            assert await keys.project_by_name(t, "later") == "prj_later"
        await former.close()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["sandkeep.db", Path(kept).name]


async def test_a_restore_that_fails_changes_nothing(database_url: str) -> None:
    database = Database(database_url)
    await database.open()
    await tell(database, "one")
    before = await rows_of(database)
    lines = await lines_of(database)

    async def fill(t: Any, above: int) -> dict[str, int]:
        twice = [{"table": "projects", "columns": ["id", "name", "created_at"]}, ["p1", "a", 1.0], ["p2", "a", 1.0]]
        return await backup.load(t, lines[0], [*lines[1:], *twice], later=0, above=above)

    with pytest.raises(Exception, match=r"(?i)unique"):
        await backup.replace(database, file_of(database_url), "20261127T000000Z", fill)
    await database.close()
    if file := file_of(database_url):
        assert [path.name for path in file.parent.iterdir()] == [file.name]
    database = Database(database_url)
    await database.open()
    assert await rows_of(database) == before
    await database.close()


async def test_a_damaged_database_is_replaced_and_kept(tmp_path: Path) -> None:
    whole = Database(f"sqlite:///{tmp_path}/whole.db")
    await whole.open()
    lines = await lines_of(whole)
    await whole.close()
    file = tmp_path / "sandkeep.db"
    file.write_bytes(b"not a database " * 1000)
    (tmp_path / "sandkeep.db-wal").write_bytes(b"its log")

    async def fill(t: Any, above: int) -> dict[str, int]:
        return await backup.load(t, lines[0], lines[1:], later=0, above=above)

    database = Database(f"sqlite:///{file}")
    _, kept = await backup.replace(database, file, "T", fill)
    await database.close()
    assert Path(kept).read_bytes().startswith(b"not a database")
    restored = Database(f"sqlite:///{file}")
    await restored.open()
    assert await restored.damage() is None
    await restored.close()


async def test_a_backup_under_load_is_one_moment(database_url: str) -> None:
    """Each transaction adds a project and an event: every backup has as many of the one as of the other."""
    database, looking = Database(database_url), Database(database_url, read_only=True)
    await database.open()
    done = anyio.Event()

    async def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            async with database.transaction() as t:
                await keys.add_project(t, f"prj_{number}", f"p{number}", 1.0)
                await events.add(
                    t, project_id="p", at=1, kind=EventKind.KEY_CREATED, subject="s", reason="", data={}
                )  # fmt: skip
                await anyio.sleep(0)

    sizes = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        for _ in range(10):
            counts = {"projects": 0, "events": 0}
            name = ""
            for value in await lines_of(looking):
                name = value.get("table", name) if isinstance(value, dict) else name
                if isinstance(value, list) and name in counts:
                    counts[name] += 1
            assert counts["projects"] == counts["events"]
            sizes.append(counts["events"])
        done.set()
    assert sizes[-1] > sizes[0]
    await looking.close()
    await database.close()


def a_backup(**fields: Any) -> bytes:
    header = {"format": "sandkeep-backup", "version": 1, "schema": HEAD, "node": "n", "last_event": 0, **fields}
    body = json.dumps(header).encode() + b"\n" + b'{"table":"projects","columns":["id"]}\n["prj_1"]\n'
    return body + json.dumps({"rows": 1, "sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n"


async def test_a_whole_backup_is_taken() -> None:
    assert verify(io.BytesIO(a_backup()))["schema"] == HEAD


@pytest.mark.parametrize("where", range(0, len(a_backup()) - 1, 7))
async def test_a_damaged_backup_is_refused_with_words(where: int) -> None:
    """A bit changed anywhere, and cut off anywhere."""
    whole = a_backup()
    changed = whole[:where] + bytes([whole[where] ^ 4]) + whole[where + 1 :]
    for damaged in (changed, whole[:where]):
        try:
            header = verify(io.BytesIO(damaged))
        except Conflict as error:
            assert "backup" in error.message
        else:  # only what the checksum does not cover: the number of rows beside it
            assert damaged[: whole.rindex(b'{"rows"')] == whole[: whole.rindex(b'{"rows"')]
            assert header == verify(io.BytesIO(whole))


@pytest.mark.parametrize("fields", [{"version": 2}, {"schema": "9999"}])
async def test_a_backup_of_a_newer_version_is_refused_with_words(fields: dict[str, Any]) -> None:
    with pytest.raises(Conflict, match="newer"):
        verify(io.BytesIO(a_backup(**fields)))


async def test_something_else_is_refused_with_words() -> None:
    for content in (b"", b"\n", b"hello\n", b"[]\n", b"\x7fELF" * 99):
        with pytest.raises(Conflict, match=r"not a backup|damaged"):
            verify(io.BytesIO(content))


async def test_a_file_written_in_pieces_is_whole_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "file"

    def write(fail: bool) -> None:
        with written_durably(file) as target:
            target.write(b"all of it")
            assert not file.exists()
            if fail:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        write(fail=True)
    assert list(tmp_path.iterdir()) == []
    write(fail=False)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"all of it"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
