"""The connection to the database, and its transactions: one after the other, on SQLite and on PostgreSQL alike.

There is one connection, and one server that owns it. So what a transaction has read stands until it ends, and nothing is
ever retried. A database that does not answer is Unavailable to callers; the next transaction looks for it again.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from sqlalchemy import make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sandkeep.domain.errors import Conflict, InvalidArgument, NoCapacity, StorageFailed, Unavailable
from sandkeep.store import postgres, sqlite
from sandkeep.store.tables import metadata
from sandkeep.telemetry.log import log

Transaction = AsyncConnection
"""What the functions of store take: a transaction under way."""
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
_REST = 0.5
"""Seconds in which nobody knocks again at a database that did not answer: who waits in line is told at once."""


class Database:
    def __init__(self, url: str, *, password: str | None = None, read_only: bool = False) -> None:
        """`url`: sqlite:///PATH or postgresql://... `read_only`: beside the server that owns it; one moment of it for
        each transaction. Raises InvalidArgument for any other URL."""
        try:
            parsed = make_url(url)
            driver = _DRIVERS.get(parsed.get_backend_name())
            port = parsed.port
        except (ArgumentError, ValueError):
            driver, port = None, None
        if driver is None or (port is not None and not 0 < port < 65536):
            raise InvalidArgument(
                "database_url cannot be understood", hint="postgresql://USER@HOST/DATABASE, or empty for SQLite"
            )
        parsed = parsed.set(drivername=driver)
        self.kind = parsed.get_backend_name()
        self._engine: AsyncEngine
        if self.kind == "sqlite":
            self._engine, self._meaning = sqlite.make_engine(parsed, read_only=read_only), sqlite.meaning
        else:
            self._engine = postgres.make_engine(parsed, password=password, read_only=read_only)
            self._meaning = postgres.meaning
        self._turn = anyio.Lock(fast_acquire=True)
        self._lost: Unavailable | None = None
        self._rest_until = 0.0
        self._full = self._whole = self._suspect = False

    async def open(self) -> None:
        """Own it, and bring the schema to this version. Raises Conflict for a database of a newer version, a damaged
        one, or one that another server has; Unavailable when it does not answer."""
        from sandkeep.store.migrations import migrate

        try:
            async with self.transaction() as transaction:
                await transaction.run_sync(migrate, metadata)
        except Unavailable as error:
            if isinstance(error.__cause__, postgres.TakenError):
                raise Conflict(
                    "another server has this database", hint="each instance needs a database (or schema) of its own"
                ) from error
            raise
        self._whole = True

    async def look(self) -> str | None:
        """The version of its schema, None for an empty one. Changes nothing. Raises Unavailable, Conflict."""
        from sandkeep.store.migrations import revision

        async with self.transaction() as transaction:
            return await transaction.run_sync(revision)

    async def erase(self) -> None:
        """Every table of ours. Raises Unavailable."""
        from sandkeep.store.migrations import erase

        async with self.transaction() as transaction:
            await transaction.run_sync(erase, metadata)

    async def damage(self) -> str | None:
        """What the database finds wrong with itself. PostgreSQL has no such question."""
        if self.kind != "sqlite":
            return None
        async with self.transaction() as transaction:
            found = str((await transaction.execute(text("PRAGMA quick_check"))).scalar())
        return None if found == "ok" else found

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """All or nothing; durable when it ends. Not cancelled in the middle (it takes milliseconds): a cancelled query
        would leave the one connection in the hands of nobody. Raises Unavailable: it is then not known whether what was
        on its way to be committed is."""
        with anyio.CancelScope(shield=True):
            async with self._turn:
                if self._lost is not None and time.monotonic() < self._rest_until:
                    raise Unavailable(
                        self._lost.message,
                        hint=self._lost.hint,
                        retry_after=self._lost.retry_after,
                        **self._lost.details,
                    )
                try:
                    async with self._engine.connect() as connection:
                        async with connection.begin():
                            try:
                                yield connection
                            except TimeoutError:
                                await connection.invalidate()  # nothing more is asked of what does not answer
                                raise
                        if connection.sync_connection is not None:
                            connection.sync_connection.info[sqlite.SETTLED] = True
                except (SQLAlchemyError, OSError, postgres.TakenError) as error:
                    self._fail(error)
                    raise
                if self._lost is not None:
                    self._lost = None
                    log("database.found")

    def _fail(self, error: Exception) -> None:
        """Raises what callers are told, if the error is not ours."""
        told = self._meaning(error)
        if told is None:
            return
        if isinstance(told, Unavailable):
            if self._lost is None:
                log("database.lost", "warning", error=told.message)
            self._lost, self._rest_until = told, time.monotonic() + _REST
        if (
            isinstance(told, Conflict) and self._whole
        ):  # it was read a moment ago: SQLite says so of a disk that fails, too
            told = _damaged(told.message)
            self._suspect = True
        self._full = isinstance(told, NoCapacity)
        raise told from error

    async def check(self) -> None:
        """Raises NoCapacity, Unavailable when nothing could be written now. Once the disk was full, a write is tried; once
        damage was met, the whole of it is looked through (seconds for a gigabyte). Raises StorageFailed for that."""
        async with self.transaction() as transaction:
            await transaction.execute(text("SELECT 1"))
            if self._full and self.kind == "sqlite":
                await transaction.execute(text("PRAGMA user_version = 0"))
        self._full = False
        if self._suspect:
            if found := await self.damage():
                raise _damaged(f"the database is damaged: {found}")
            self._suspect = False

    async def close(self) -> None:
        await self._engine.dispose()


def _damaged(what: str) -> StorageFailed:
    hint = "look at the kernel's log of the host; if its disk is well: sandkeep backup restore FILE"
    return StorageFailed(what, hint=hint, retry_after=30)
