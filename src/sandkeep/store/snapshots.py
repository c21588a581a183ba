"""Snapshots in the database."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from sandkeep.domain.errors import AlreadyExists
from sandkeep.domain.snapshot import Cause, Snapshot, SnapshotKind, SnapshotPhase
from sandkeep.store.tables import snapshots as table


def _row(snapshot: Snapshot) -> dict[str, Any]:
    return {**asdict(snapshot), "tags": list(snapshot.tags)}


def _snapshot(row: Any) -> Snapshot:
    return Snapshot(
        id=row.id,
        project_id=row.project_id,
        sandbox_id=row.sandbox_id,
        name=row.name,
        kind=SnapshotKind(row.kind),
        tags=tuple(row.tags),
        parent=row.parent,
        phase=SnapshotPhase(row.phase),
        reason=row.reason,
        created_at=row.created_at,
        held=row.held,
        cause=Cause(row.cause),
        archived=row.archived,
    )


async def add(connection: AsyncConnection, snapshot: Snapshot) -> None:
    """Raises AlreadyExists when its sandbox has one of this name."""
    try:
        await connection.execute(insert(table).values(_row(snapshot)))
    except IntegrityError as error:
        raise AlreadyExists(
            f"the sandbox has a snapshot named {snapshot.name}", hint="choose another name, or delete that one"
        ) from error


async def save(connection: AsyncConnection, snapshot: Snapshot) -> bool:
    """False: it is gone."""
    done = await connection.execute(update(table).where(table.c.id == snapshot.id).values(_row(snapshot)))
    return done.rowcount == 1


async def get(connection: AsyncConnection, sandbox_id: str, reference: str) -> Snapshot | None:
    """By id or name."""
    named = or_(table.c.id == reference, table.c.name == reference)
    row = (await connection.execute(select(table).where(table.c.sandbox_id == sandbox_id, named))).first()
    return _snapshot(row) if row else None


async def by_id(connection: AsyncConnection, snapshot_id: str) -> Snapshot | None:
    row = (await connection.execute(select(table).where(table.c.id == snapshot_id))).first()
    return _snapshot(row) if row else None


async def of(connection: AsyncConnection, sandbox_id: str) -> list[Snapshot]:
    """Oldest first."""
    found = select(table).where(table.c.sandbox_id == sandbox_id).order_by(table.c.created_at, table.c.id)
    return [_snapshot(row) for row in await connection.execute(found)]


async def count(connection: AsyncConnection, sandbox_id: str) -> int:
    found = select(func.count()).select_from(table).where(table.c.sandbox_id == sandbox_id)
    return (await connection.execute(found)).scalar() or 0


async def newest(connection: AsyncConnection, sandbox_ids: list[str]) -> dict[str, tuple[int, float]]:
    """Sandbox -> how many it has, and when the newest was made. Those without any are not in it."""
    found = select(table.c.sandbox_id, func.count(), func.max(table.c.created_at))
    rows = await connection.execute(found.where(table.c.sandbox_id.in_(sandbox_ids)).group_by(table.c.sandbox_id))
    return {row[0]: (row[1], row[2]) for row in rows}


async def everywhere(connection: AsyncConnection) -> list[Snapshot]:
    return [_snapshot(row) for row in await connection.execute(select(table))]


async def give_children_away(connection: AsyncConnection, snapshot: Snapshot) -> None:
    """What came from it now comes from its own parent."""
    children = update(table).where(table.c.sandbox_id == snapshot.sandbox_id, table.c.parent == snapshot.id)
    await connection.execute(children.values(parent=snapshot.parent))


async def remove(connection: AsyncConnection, snapshot_id: str) -> bool:
    return (await connection.execute(delete(table).where(table.c.id == snapshot_id))).rowcount == 1


async def remove_of(connection: AsyncConnection, sandbox_id: str) -> None:
    """All of a sandbox."""
    await connection.execute(delete(table).where(table.c.sandbox_id == sandbox_id))
