"""Nodes that this database belongs to, and up to where the feed of each was read."""

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from sandkeep.store.tables import nodes as table


async def last_fact(connection: AsyncConnection, node_id: str) -> int:
    return (await connection.execute(select(table.c.last_fact).where(table.c.id == node_id))).scalar() or 0


async def known(connection: AsyncConnection) -> set[str]:
    return {row.id for row in await connection.execute(select(table.c.id))}


async def add(connection: AsyncConnection, node_id: str, project_id: str) -> None:
    """Nothing to do when it is known."""
    if node_id not in await known(connection):
        await connection.execute(insert(table).values(id=node_id, project_id=project_id, last_fact=0))


async def save_last_fact(connection: AsyncConnection, node_id: str, project_id: str, seq: int) -> None:
    done = await connection.execute(update(table).where(table.c.id == node_id).values(last_fact=seq))
    if not done.rowcount:
        await connection.execute(insert(table).values(id=node_id, project_id=project_id, last_fact=seq))
