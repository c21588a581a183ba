"""The connection to the database, and its transactions.

SQLite: one connection for the whole process, so that it alone writes and checkpoints the WAL (versions before 3.51.3 can
corrupt it under two), synchronous=FULL: what was committed survives a power cut.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from sandkeep.store.tables import metadata

Transaction = AsyncConnection
"""What the functions of store take: a transaction under way."""


class Database:
    def __init__(self, url: str) -> None:
        """`url`: sqlite+aiosqlite:///PATH or postgresql+asyncpg://..."""
        options: dict[str, Any] = {}
        self._sqlite = url.startswith("sqlite")
        if self._sqlite:
            options = {"poolclass": AsyncAdaptedQueuePool, "pool_size": 1, "max_overflow": 0}
        self._engine: AsyncEngine = create_async_engine(url, **options)
        if self._sqlite:
            event.listen(self._engine.sync_engine, "connect", _configure_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_immediate)

    async def open(self) -> None:
        """Bring the schema to this version. Raises RuntimeError for a database of a newer version."""
        from sandkeep.store.migrations import migrate

        async with self._engine.connect() as connection:
            await connection.run_sync(migrate, metadata)
            await connection.commit()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """All or nothing; durable when it ends."""
        async with self._engine.begin() as connection:
            yield connection

    async def close(self) -> None:
        await self._engine.dispose()


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's begin event below starts transactions, not the sqlite3 module
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000", "cache_size=-4096"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
