"""The connection to the database, and its transactions.

SQLite: one connection for the whole process, so that it alone writes and checkpoints the WAL (versions before 3.51.3 can
corrupt it under two), synchronous=FULL: what was committed survives a power cut.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from sandkeep.store.tables import metadata

Transaction = AsyncConnection
"""What the functions of store take: a transaction under way."""
_SETTLED = "settled"


class Database:
    def __init__(self, url: str) -> None:
        """`url`: sqlite+aiosqlite:///PATH or postgresql+asyncpg://..."""
        options: dict[str, Any] = {}
        self._sqlite = url.startswith("sqlite")
        if self._sqlite:
            options = {
                "poolclass": AsyncAdaptedQueuePool,
                "pool_size": 1,
                "max_overflow": 0,
                "pool_reset_on_return": None,
            }
        self._engine: AsyncEngine = create_async_engine(url, **options)
        if self._sqlite:
            event.listen(self._engine.sync_engine, "connect", _configure_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_immediate)
            event.listen(self._engine.sync_engine, "reset", _roll_back_the_rest)

    async def open(self) -> None:
        """Bring the schema to this version. Raises RuntimeError for a database of a newer version."""
        from sandkeep.store.migrations import migrate

        async with self._engine.connect() as connection:
            await connection.run_sync(migrate, metadata)
            await connection.commit()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """All or nothing; durable when it ends. Not cancelled in the middle (it takes milliseconds): a cancelled query
        would leave the one connection in the hands of nobody."""
        with anyio.CancelScope(shield=True):
            async with self._engine.connect() as connection:
                async with connection.begin():
                    yield connection
                if connection.sync_connection is not None:
                    connection.sync_connection.info[_SETTLED] = True

    async def close(self) -> None:
        await self._engine.dispose()


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's begin event below starts transactions, not the sqlite3 module
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000", "cache_size=-4096"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    """By the driver itself: one trip to its thread, where a cursor of SQLAlchemy's makes three."""
    connection.connection.dbapi_connection.run_async(lambda driver: driver.execute("BEGIN IMMEDIATE"))


def _roll_back_the_rest(connection: Any, record: Any, _state: Any) -> None:
    """As the pool itself does at every return, but not after a commit: it is a trip to the driver's thread for nothing.
    What the driver says of itself would not do: the BEGIN of a cancelled task may still be on its way there."""
    if not record.info.pop(_SETTLED, False):
        connection.rollback()
