"""The whole database as lines of JSON, independent of the database's kind: for `app/backup`.

Tables are taken as the database has them, not as this version would make them, so an older schema is carried as it is and
brought up to date after it was loaded. First a header, then per table its name and columns and one list per row.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import MetaData, column, insert, select, table, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from sandkeep.domain.errors import PermissionDenied, SandkeepError
from sandkeep.lib.files import sync_folder
from sandkeep.store.database import Database
from sandkeep.store.migrations import check, migrate, move, revision
from sandkeep.store.tables import metadata

_BATCH = 500
_LAST_IN_SQLITE = "SELECT seq FROM sqlite_sequence WHERE name = 'events'"
_LAST_IN_POSTGRES = "SELECT pg_sequence_last_value(pg_get_serial_sequence('events', 'seq')::regclass)"
_SET_IN_POSTGRES = "SELECT setval(pg_get_serial_sequence('events', 'seq'), :number)"


async def dump(connection: AsyncConnection, about: dict[str, Any]) -> AsyncIterator[Any]:
    """Each line's value, the header first (`about`, the schema, the last event's number)."""
    found = await _reflected(connection)
    schema = await connection.run_sync(revision)
    yield {**about, "schema": schema, "last_event": await last_event(connection)}
    for name in sorted(found.tables):
        one = found.tables[name]
        yield {"table": name, "columns": [item.name for item in one.columns]}
        rows = await connection.stream(select(one).order_by(*one.primary_key.columns))
        async for row in rows:
            yield list(row)


async def load(
    connection: AsyncConnection, header: dict[str, Any], lines: Iterable[Any], *, later: float, above: int
) -> dict[str, int]:
    """Into a database without tables of ours; the rows per table. `later`: seconds since the backup, by which lifetimes
    end later; `above`: events go on above this number, so that nobody who follows them misses one."""
    check(header["schema"], "the backup")
    await connection.run_sync(move, metadata, header["schema"])
    found = await _reflected(connection)
    counts: dict[str, int] = {}
    for name, rows in _tables(lines):
        counts[name] = 0
        while batch := list(islice(rows, _BATCH)):
            await connection.execute(insert(found.tables[name]), batch)
            counts[name] += len(batch)
    ends = found.tables["sandboxes"].c.expires_at
    await connection.execute(update(ends.table).where(ends.is_not(None)).values(expires_at=ends + later))
    await connection.run_sync(migrate, metadata)
    await _set_last_event(connection, max(int(header["last_event"]), above))
    return counts


def _tables(lines: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    """(table, its rows as dictionaries), from values in the order that dump gave them."""
    waiting = iter(lines)
    head = next(waiting, None)
    while head is not None:
        following: list[Any] = []

        def rows(columns: list[str], following: list[Any] = following) -> Iterable[dict[str, Any]]:
            for line in waiting:
                if isinstance(line, dict):
                    following.append(line)
                    return
                yield dict(zip(columns, line, strict=True))

        yield head["table"], rows(head["columns"])
        head = following[0] if following else None


async def _reflected(connection: AsyncConnection) -> MetaData:
    """Our tables as they are there."""
    found = MetaData()
    await connection.run_sync(found.reflect, only=lambda name, _: name in metadata.tables)
    return found


async def last_event(connection: AsyncConnection) -> int:
    """The highest number that an event was ever given."""
    sqlite = connection.dialect.name == "sqlite"
    found = await connection.execute(text(_LAST_IN_SQLITE if sqlite else _LAST_IN_POSTGRES))
    return int(found.scalar() or 0)


async def _set_last_event(connection: AsyncConnection, number: int) -> None:
    if not number:
        return
    if connection.dialect.name != "sqlite":
        await connection.execute(text(_SET_IN_POSTGRES), {"number": number})
        return
    sequence = table("sqlite_sequence", column("name"), column("seq"))
    done = await connection.execute(update(sequence).where(sequence.c.name == "events").values(seq=number))
    if not done.rowcount:
        await connection.execute(insert(sequence).values(name="events", seq=number))


Fill = Callable[[AsyncConnection, int], Awaitable[dict[str, int]]]
"""Makes the new content; takes the number above which events go on."""


async def replace(database: Database, file: Path | None, stamp: str, fill: Fill) -> tuple[dict[str, int], str]:
    """Put what `fill` makes in the place of what is there, all or nothing; what was there is kept beside it. Nothing else
    may have the database open. `file`: SQLite's. Returns the rows per table, and where the former database is ("" if
    there was none). Raises Conflict, PermissionDenied, Unavailable."""
    if file is not None:
        return await _replace_file(database, file, f"before-restore-{stamp}", fill)
    return await _replace_tables(database, f"sandkeep_before_restore_{stamp.lower()}", fill)


async def _replace_file(database: Database, file: Path, suffix: str, fill: Fill) -> tuple[dict[str, int], str]:
    above = await _fold(database) if file.exists() else 0
    fresh = file.with_name(f"{file.name}.restoring")
    _remove(fresh)
    made = Database(f"sqlite:///{fresh}")
    try:
        try:
            async with made.transaction() as transaction:
                counts = await fill(transaction, above)
        finally:
            await made.close()  # the last one to close: all of it is in the file then, synced
    except BaseException:
        _remove(fresh)
        raise
    kept = ""
    if file.exists():
        beside = file.with_name(f"{file.name}.{suffix}")
        beside.hardlink_to(file)
        kept = str(beside)
    for part in _parts(file)[
        1:
    ]:  # there only when the former database could not be opened; it shall not meet the new file
        if part.exists():
            part.rename(part.with_name(f"{file.name}.{suffix}{part.name.removeprefix(file.name)}"))
    sync_folder(file.parent)
    fresh.rename(file)
    sync_folder(file.parent)
    return counts, kept


async def _fold(database: Database) -> int:
    """Bring SQLite's WAL into its file, and read the last event's number, unless the file is damaged."""
    try:
        async with database.transaction() as transaction:
            return await last_event(transaction)
    except (SandkeepError, DBAPIError):
        return 0
    finally:
        await database.close()


def _remove(file: Path) -> None:
    for part in _parts(file):
        part.unlink(missing_ok=True)


def _parts(file: Path) -> list[Path]:
    return [file, *(file.with_name(file.name + suffix) for suffix in ("-wal", "-shm", "-journal"))]


async def _replace_tables(database: Database, schema: str, fill: Fill) -> tuple[dict[str, int], str]:
    """In one transaction: the tables move to a schema of their own, new ones take their place."""
    try:
        async with database.transaction() as transaction:
            there = await transaction.run_sync(revision)
            check(there, "the database")
            above = 0
            if there is not None:
                above = await last_event(transaction)
                await transaction.execute(text(f"CREATE SCHEMA {schema}"))
                for name in (*metadata.tables, "alembic_version"):
                    await transaction.execute(text(f"ALTER TABLE IF EXISTS {name} SET SCHEMA {schema}"))
            counts = await fill(transaction, above)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", "") != "42501":
            raise
        raise PermissionDenied(
            "the database's user may not make the schema that keeps the former tables",
            hint="as its owner: GRANT CREATE ON DATABASE name TO user",
        ) from error
    return counts, f"schema {schema}" if there is not None else ""
