"""Schema changes, by Alembic: `versions/` in order. A new database is made whole and stamped with the newest."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, MetaData, inspect, text

from sandkeep.domain.errors import Conflict

HEAD = "0007"


def revision(connection: Connection) -> str | None:
    """Which version's schema it has; None: none of ours."""
    if "alembic_version" not in inspect(connection).get_table_names():
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def migrate(connection: Connection, metadata: MetaData) -> None:
    """Bring the database to HEAD. Raises Conflict when it is of a newer version."""
    current = revision(connection)
    if current != HEAD:
        check(current, "the database")
        move(connection, metadata, HEAD)


def check(current: str | None, what: str) -> None:
    """Raises Conflict when `what` has a schema that this version does not know."""
    if current is not None and current > HEAD:
        raise Conflict(
            f"{what} has schema {current}, newer than this version's {HEAD}", hint="install the newer Sandkeep again"
        )


def move(connection: Connection, metadata: MetaData, target: str) -> None:
    """Up or down to a version (`base`: nothing left). Down keeps what the older schema can hold. Alembic is imported only
    when there is something to do."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["metadata"] = metadata
    current = revision(connection)
    run: Any = command.downgrade if current is not None and (target == "base" or target < current) else command.upgrade
    run(config, target)


def erase(connection: Connection, metadata: MetaData) -> None:
    """Every table of ours."""
    metadata.drop_all(connection)
    connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
