"""SQLite, for `database`: one connection for the whole process.

It alone writes and checkpoints the WAL: versions before 3.51.3 can corrupt it when two connections do. So nothing but the
server may open the database for writing; others look at it read-only, which neither writes nor checkpoints.
"""

from typing import Any

from sqlalchemy import URL, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from sandkeep.domain.errors import Conflict, NoCapacity, SandkeepError, Unavailable

SETTLED = "settled"
_AWAY = ("SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PERM")


def make_engine(url: URL, *, read_only: bool) -> AsyncEngine:
    """synchronous=FULL: what was committed survives a power cut."""
    if read_only:
        url = url.set(database=f"file:{url.database}", query={"mode": "ro", "uri": "true"})
    engine = create_async_engine(
        url,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=1,
        max_overflow=0,
        pool_reset_on_return=None,
        hide_parameters=True,
    )
    sync = engine.sync_engine
    event.listen(sync, "connect", _configure_reader if read_only else _configure)
    event.listen(sync, "begin", _begin if read_only else _begin_immediate)
    event.listen(sync, "reset", _roll_back_the_rest)
    return engine


def meaning(error: Exception) -> SandkeepError | None:
    """What a caller is told when the file cannot be used; None: a mistake of ours."""
    orig = error.orig if isinstance(error, DBAPIError) else error
    name = getattr(orig, "sqlite_errorname", "")
    if name == "SQLITE_FULL":
        return NoCapacity("the disk of the database is full", hint="free space in the data folder", retry_after=5)
    if name.startswith(_AWAY):
        return Unavailable(
            f"the database cannot be used: {orig}", hint="look at its disk", retry_after=2, part="database"
        )
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return Conflict(f"the database is damaged: {orig}", hint="sandkeep backup restore FILE")
    return None


def _configure(connection: Any, _record: Any) -> None:
    _pragmas(
        connection, "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000", "cache_size=-4096"
    )


def _configure_reader(connection: Any, _record: Any) -> None:
    _pragmas(connection, "query_only=ON", "busy_timeout=5000")


def _pragmas(connection: Any, *pragmas: str) -> None:
    connection.isolation_level = None  # SQLAlchemy's begin event below starts transactions, not the sqlite3 module
    cursor = connection.cursor()
    for pragma in pragmas:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    """By the driver itself: one trip to its thread, where a cursor of SQLAlchemy's makes three."""
    connection.connection.dbapi_connection.run_async(lambda driver: driver.execute("BEGIN IMMEDIATE"))


def _begin(connection: Any) -> None:
    connection.connection.dbapi_connection.run_async(lambda driver: driver.execute("BEGIN"))


def _roll_back_the_rest(connection: Any, record: Any, _state: Any) -> None:
    """As the pool itself does at every return, but not after a commit: it is a trip to the driver's thread for nothing.
    What the driver says of itself would not do: the BEGIN of a cancelled task may still be on its way there."""
    if not record.info.pop(SETTLED, False):
        connection.rollback()
