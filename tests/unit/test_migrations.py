"""Schema changes: a database of every earlier version becomes one of this version, its rows kept, and back."""

from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, inspect, text

from sandkeep.domain.restart import OnFailure, Restarts
from sandkeep.store import migrations, sandboxes
from sandkeep.store.database import Database
from sandkeep.store.tables import metadata

FIRST_ROW = """
INSERT INTO sandboxes (id, project_id, template, template_name, runtime, persistence, cpus, memory, disk, pids, env,
  labels, network, on_expiry, pause_or_disk, phase, reason, since, conditions, epoch, created_at, updated_at)
VALUES (:id, 'prj_1', 'tpl_1', 'base', 'gvisor', :persistence, 1, 1, 1, 1, '{}', '{}', 'none', 'default', 0, 'running',
  '', 1, '[]', 3, 1, 1)
"""


def to_version(connection: Connection, verb: Any, version: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    config.attributes["metadata"] = metadata
    verb(config, version)


def columns(connection: Connection) -> dict[str, set[str]]:
    found = inspect(connection)
    there = metadata.tables.keys() & set(found.get_table_names())
    return {table: {column["name"] for column in found.get_columns(table)} for table in there}


@pytest.mark.anyio
async def test_rows_of_the_first_version_are_kept(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/old.db")
    with engine.begin() as connection:
        to_version(connection, command.upgrade, "0001")
        before = columns(connection)
        for identifier, persistence in (("sbx_1", "full"), ("sbx_2", "ephemeral")):
            connection.execute(text(FIRST_ROW), {"id": identifier, "persistence": persistence})
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/old.db")
    await database.open()
    async with database.transaction() as transaction:
        found = {sandbox.id: sandbox for sandbox in await sandboxes.everywhere(transaction)}
    await database.close()
    assert {name: (s.spec.on_failure, s.restarts, s.epoch) for name, s in found.items()} == {
        "sbx_1": (OnFailure.RESTART, Restarts(), 3),
        "sbx_2": (OnFailure.STOP, Restarts(), 3),
    }
    with engine.begin() as connection:
        assert columns(connection) == {name: set(table.columns.keys()) for name, table in metadata.tables.items()}
        to_version(connection, command.downgrade, "0001")
        assert columns(connection) == before
        assert connection.execute(text("SELECT count(*) FROM sandboxes")).scalar() == 2
    engine.dispose()
