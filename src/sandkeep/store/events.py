"""Events in the database."""

from itertools import takewhile
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from sandkeep.domain.event import Event, EventKind
from sandkeep.store.tables import events as table

_ADD = insert(table)
_OLDEST = select(func.min(table.c.seq))
_NEWEST = select(func.max(table.c.seq))


async def add(
    connection: AsyncConnection,
    *,
    project_id: str,
    at: float,
    kind: EventKind,
    subject: str,
    reason: str,
    data: dict[str, Any],
) -> Event:
    row = {"project_id": project_id, "at": at, "kind": str(kind), "subject": subject, "reason": reason, "data": data}
    done = await connection.execute(_ADD, row)
    assert done.inserted_primary_key is not None
    return Event(done.inserted_primary_key[0], project_id, at, kind, subject, reason, data)


async def latest(connection: AsyncConnection, subject: str, limit: int) -> list[Event]:
    """The last ones about it, oldest first."""
    rows = await connection.execute(
        select(table).where(table.c.subject == subject).order_by(table.c.seq.desc()).limit(limit)
    )
    return [_event(row) for row in rows][::-1]


async def page(
    connection: AsyncConnection, project_id: str, *, after: int, limit: int, subject: str | None = None
) -> list[Event]:
    """In order, those above `after`."""
    conditions = [table.c.project_id == project_id, table.c.seq > after]
    if subject:
        conditions.append(table.c.subject == subject)
    rows = await connection.execute(select(table).where(*conditions).order_by(table.c.seq).limit(limit))
    return [_event(row) for row in rows]


async def oldest(connection: AsyncConnection) -> int:
    """The number of the first one that is kept, of all projects; 0 without any."""
    return (await connection.execute(_OLDEST)).scalar() or 0


async def prune(connection: AsyncConnection, *, before: float, count: int, at_most: int) -> int:
    """Remove the first ones, as long as they are older than `before` or there are `count` behind them; how many went.
    The last one stays."""
    newest = (await connection.execute(_NEWEST)).scalar() or 0
    rows = await connection.execute(select(table.c.seq, table.c.at).order_by(table.c.seq).limit(at_most))
    going = [
        row.seq
        for row in takewhile(lambda row: row.seq < newest and (row.at < before or row.seq <= newest - count), rows)
    ]
    if going:
        await connection.execute(delete(table).where(table.c.seq <= going[-1]))
    return len(going)


def _event(row: Any) -> Event:
    return Event(row.seq, row.project_id, row.at, EventKind(row.kind), row.subject, row.reason, row.data)


async def deleted(connection: AsyncConnection, subjects: list[str]) -> set[str]:
    """Which of these sandboxes were deleted by this installation, as far as its events go back."""
    rows = await connection.execute(
        select(table.c.subject).where(table.c.kind == str(EventKind.SANDBOX_DELETED), table.c.subject.in_(subjects))
    )
    return {row.subject for row in rows}
