"""PostgreSQL, for `database`: one connection, which owns the database by an advisory lock.

The lock belongs to the session that writes. Whoever lost the connection has lost the lock, and takes it again with the next
one or writes nothing: two servers cannot both believe that the database is theirs. And one writer means that transactions
happen one after the other, as on SQLite.
"""

import json
import re
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import URL, event
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sandkeep.domain.errors import SandkeepError, Unavailable

_CONNECT, _COMMAND = 5.0, 15.0
_PATIENCE = "5s"  # the session of a server that was killed a moment ago may still be ending
_OWN = "SELECT pg_advisory_lock(hashtextextended('sandkeep ' || coalesce(current_schema(), ''), 0))"
_DURABLE = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
_SESSION = {
    "application_name": "sandkeep",
    # a server whose host vanished keeps its lock for half a minute, not for two hours
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_AWAY_CLASSES = ("08", "28", "3D", "53", "57")  # connection, authorization, no such database, resources, shutdown
_AWAY = ("25006", "40001", "40P01", "55P03")  # a standby, serialization, deadlock, lock not available
_CLASS = re.compile(r"^<class '[^']*'>: ")
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


class TakenError(Exception):
    """Another server owns the database."""


def make_engine(url: URL, *, password: str | None, read_only: bool) -> AsyncEngine:
    if password is not None:
        url = url.set(password=password)
    options = url.get_dialect()().create_connect_args(url)[1]

    async def connect() -> Any:
        driver = await asyncpg.connect(
            **options, timeout=_CONNECT, command_timeout=_COMMAND, server_settings=dict(_SESSION)
        )
        try:
            await (_look_only(driver) if read_only else _own(driver))
        except BaseException:
            driver.terminate()
            raise
        return driver

    engine = create_async_engine(
        url,
        async_creator=connect,
        pool_size=1,
        max_overflow=0,
        hide_parameters=True,
        json_serializer=_json,
        **({"isolation_level": "REPEATABLE READ"} if read_only else {}),
    )
    event.listen(engine.sync_engine, "checkout", _check)
    event.listen(engine.sync_engine, "before_cursor_execute", _without_nul, retval=True)
    return engine


def meaning(error: Exception) -> SandkeepError | None:
    """What a caller is told when the database is away; None: a mistake of ours."""
    orig = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(error, DBAPIError):
        state = getattr(orig, "sqlstate", None) or ""
        gone = error.connection_invalidated or isinstance(error, InterfaceError)
        if not (gone or state.startswith(_AWAY_CLASSES) or state in _AWAY):
            return None
    elif not isinstance(error, OSError | TakenError):
        return None
    reason = _CLASS.sub("", str(orig)).strip() or type(orig).__name__
    return Unavailable(
        f"the database does not answer: {reason}",
        hint="is PostgreSQL up, and database_url right?",
        retry_after=2,
        part="database",
    )


async def _own(driver: Any) -> None:
    await driver.execute(f"SET lock_timeout = '{_PATIENCE}'")
    try:
        await driver.execute(_OWN)
    except asyncpg.LockNotAvailableError as error:
        raise TakenError("another server has this database") from error
    await driver.execute("RESET lock_timeout")
    await driver.execute(_DURABLE)


async def _look_only(driver: Any) -> None:
    await driver.execute("SET default_transaction_read_only = on")


def _check(connection: Any, _record: Any, _proxy: Any) -> None:
    """At each use, for nothing: the driver has heard when the other side closed. The pool then connects anew."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError("the connection was closed")


def _without_nul(
    _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
) -> tuple[str, Any]:
    """PostgreSQL's text cannot hold the character NUL, which a program inside may print."""
    if many:
        return statement, [_clean(row) for row in parameters]
    return statement, _clean(parameters)


def _clean(row: Any) -> Any:
    if any(isinstance(value, str) and "\0" in value for value in row):
        return tuple(value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in row)
    return row


def _json(value: Any) -> str:
    return _NUL.sub(r"\1\\ufffd", json.dumps(value))
