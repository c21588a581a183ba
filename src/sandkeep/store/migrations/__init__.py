"""Schema changes, by Alembic: `versions/` in order. A new database is made whole and stamped with the newest."""

from pathlib import Path

from sqlalchemy import Connection, MetaData, inspect, text

HEAD = "0002"


def migrate(connection: Connection, metadata: MetaData) -> None:
    """Bring the database to HEAD. Alembic is imported only when there is something to do."""
    if "alembic_version" in inspect(connection).get_table_names():
        current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if current == HEAD:
            return
        if current and current > HEAD:
            raise RuntimeError(
                f"the database is of schema {current}, newer than this version's {HEAD}: upgrade Sandkeep"
            )
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    config.attributes["metadata"] = metadata
    command.upgrade(config, "head")
