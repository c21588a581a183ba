"""The schema's versions, up and down, on both databases."""

import re
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

import sandkeep.store.migrations
from sandkeep.domain.errors import Conflict
from sandkeep.store import keys
from sandkeep.store.database import Database
from sandkeep.store.migrations import HEAD, move, revision
from sandkeep.store.tables import metadata

pytestmark = pytest.mark.anyio

VERSIONS = sorted(
    re.findall(r'^revision = "(\w+)"', path.read_text(), re.MULTILINE)[0]
    for path in (Path(sandkeep.store.migrations.__file__).parent / "versions").glob("v*.py")
)


@pytest.fixture
async def database(database_url: str) -> Any:
    made = Database(database_url)
    yield made
    await made.close()


def differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": connection.dialect.name != "sqlite"})
    return list(compare_metadata(context, metadata))


async def test_the_newest_version_is_head() -> None:
    assert VERSIONS[-1] == HEAD


async def test_migrations_make_what_the_tables_page_says(database: Database) -> None:
    await database.open()
    async with database.transaction() as t:
        assert await t.run_sync(differences) == []
        assert await t.run_sync(revision) == HEAD


async def test_down_to_base_and_up_again(database: Database) -> None:
    """Step by step; what the first version can hold is still there when it is reached, and above it again."""
    await database.open()
    async with database.transaction() as t:
        await keys.add_project(t, "prj_1", "default", 1.5)
    down = VERSIONS[-2::-1]
    for version in down:
        async with database.transaction() as t:
            await t.run_sync(move, metadata, version)
            assert await t.run_sync(revision) == version
            assert await keys.project_by_name(t, "default") == "prj_1"
    for version in VERSIONS[1:]:
        async with database.transaction() as t:
            await t.run_sync(move, metadata, version)
            assert await keys.project_by_name(t, "default") == "prj_1"
    async with database.transaction() as t:
        assert await t.run_sync(differences) == []
    async with database.transaction() as t:
        await t.run_sync(move, metadata, "base")
        assert await t.run_sync(lambda connection: inspect(connection).get_table_names()) == ["alembic_version"]
    await database.open()
    async with database.transaction() as t:
        assert await t.run_sync(differences) == []
        assert await keys.project_by_name(t, "default") is None


async def test_a_migration_that_fails_leaves_nothing(database: Database) -> None:
    async with database.transaction() as t:
        await t.execute(text("CREATE TABLE idempotency (x INTEGER)"))  # in the way of the last but one
    with pytest.raises(Exception, match="already exists"):
        await database.open()
    async with database.transaction() as t:
        assert await t.run_sync(lambda connection: inspect(connection).get_table_names()) == ["idempotency"]
        await t.execute(text("DROP TABLE idempotency"))
    await database.open()


async def test_a_database_of_a_newer_version_is_refused_with_words(database: Database) -> None:
    await database.open()
    async with database.transaction() as t:
        await keys.add_project(t, "prj_1", "default", 1.5)
        await t.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Conflict, match="the database has schema 9999, newer than this version's"):
        await database.open()
    async with database.transaction() as t:
        assert await keys.project_by_name(t, "default") == "prj_1"
