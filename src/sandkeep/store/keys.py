"""Projects and API keys in the database. A key's secret is never here, only its SHA-256."""

from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from sandkeep.domain.principal import Key
from sandkeep.store.tables import keys, projects


async def add_project(connection: AsyncConnection, project_id: str, name: str, at: float) -> None:
    await connection.execute(insert(projects).values(id=project_id, name=name, created_at=at))


async def project_by_name(connection: AsyncConnection, name: str) -> str | None:
    found = await connection.execute(select(projects.c.id).where(projects.c.name == name))
    return found.scalar()


async def project_exists(connection: AsyncConnection, project_id: str) -> bool:
    found = await connection.execute(select(projects.c.id).where(projects.c.id == project_id))
    return found.scalar() is not None


async def add(connection: AsyncConnection, key: Key, digest: str) -> None:
    await connection.execute(
        insert(keys).values(
            id=key.id,
            project_id=key.project_id,
            name=key.name,
            prefix=key.prefix,
            digest=digest,
            created_at=key.created_at,
        )
    )


async def by_digest(connection: AsyncConnection, digest: str) -> Key | None:
    """The key with this digest that was not revoked."""
    row = (await connection.execute(select(keys).where(keys.c.digest == digest, keys.c.revoked_at.is_(None)))).first()
    return _key(row) if row else None


async def active(connection: AsyncConnection) -> list[tuple[str, Key]]:
    """(digest, key) of all that were not revoked."""
    rows = await connection.execute(select(keys).where(keys.c.revoked_at.is_(None)))
    return [(row.digest, _key(row)) for row in rows]


async def page(connection: AsyncConnection, project_id: str) -> list[Key]:
    rows = await connection.execute(
        select(keys).where(keys.c.project_id == project_id).order_by(keys.c.created_at, keys.c.id)
    )
    return [_key(row) for row in rows]


async def revoke(connection: AsyncConnection, project_id: str, key_id: str, at: float) -> bool:
    done = await connection.execute(
        update(keys)
        .where(keys.c.project_id == project_id, keys.c.id == key_id, keys.c.revoked_at.is_(None))
        .values(revoked_at=at)
    )
    return done.rowcount == 1


def _key(row: Any) -> Key:
    return Key(row.id, row.project_id, row.name, row.prefix, row.created_at, row.revoked_at)
