"""Idempotency keys: which object a create with this key made."""

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from sandkeep.store.tables import idempotency as table

KEPT = 48 * 3600.0


async def get(connection: AsyncConnection, project_id: str, key: str) -> tuple[str, str] | None:
    """(fingerprint of the request, id of what it made)."""
    row = (await connection.execute(select(table).where(table.c.project_id == project_id, table.c.key == key))).first()
    return (row.fingerprint, row.subject) if row else None


async def add(
    connection: AsyncConnection, project_id: str, key: str, fingerprint: str, subject: str, at: float
) -> None:
    await connection.execute(
        insert(table).values(project_id=project_id, key=key, fingerprint=fingerprint, subject=subject, created_at=at)
    )


async def remove(connection: AsyncConnection, subject: str) -> None:
    await connection.execute(delete(table).where(table.c.subject == subject))


async def forget(connection: AsyncConnection, before: float) -> None:
    await connection.execute(delete(table).where(table.c.created_at < before))
