"""What is kept by rule: events by age and number, facts without a server, logs by size."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandkeep.app import keeper
from sandkeep.control.events import Events
from sandkeep.control.retention import Kept, Retention
from sandkeep.domain.errors import InvalidArgument
from sandkeep.domain.event import EventKind
from sandkeep.domain.node import FactKind
from sandkeep.drivers.fake.clock import FakeClock
from sandkeep.engine import feed as feeds
from sandkeep.store.database import Database
from sandkeep.testing.platform import platform

pytestmark = pytest.mark.anyio

PROJECT, SUBJECT = "prj_aaaaaaaaaaaaaaaaaaaa", "sbx_aaaaaaaaaaaaaaaaaaaa"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    made = Database(database_url)
    await made.open()
    yield made
    await made.close()


async def tell(events: Events, count: int) -> None:
    async with events.change() as ledger:
        for _ in range(count):
            await ledger.tell(EventKind.SANDBOX_UPDATED, PROJECT, SUBJECT)


async def kept(events: Events) -> list[int]:
    return [event.seq for event in await events.page(PROJECT, after=0, limit=5000)]


async def test_more_events_than_are_kept(database: Database) -> None:
    events = Events(database, FakeClock())
    await tell(events, 1200)
    retention = Retention(events, FakeClock(), Kept(event_count=300))
    assert [await retention.step() for _ in range(3)] == [500, 400, 0]
    last = (await kept(events))[-1]
    assert await kept(events) == list(range(last - 299, last + 1))
    await tell(events, 1)
    assert (await kept(events))[-1] == last + 1, "a number was given twice"


async def test_events_that_are_too_old(database: Database) -> None:
    clock = FakeClock()
    events = Events(database, clock)
    await tell(events, 10)
    retention = Retention(events, clock, Kept(event_days=2))
    assert await retention.step() == 0
    clock.advance(86400)
    await tell(events, 5)
    clock.advance(86400 + 1)
    assert await retention.step() == 10
    clock.advance(10 * 86400)
    assert await retention.step() == 4
    assert len(await kept(events)) == 1, "the last one tells which number comes next"


async def test_a_reader_that_fell_off_is_told(database: Database) -> None:
    events = Events(database, FakeClock())
    await tell(events, 20)
    seen = (await kept(events))[4]
    await events.check_kept(seen)
    await Retention(events, FakeClock(), Kept(event_count=10)).step()
    with pytest.raises(InvalidArgument, match="not kept any more") as refused:
        await events.check_kept(seen)
    oldest = refused.value.details["oldest"]
    assert (await kept(events))[0] == oldest
    await events.check_kept(oldest - 1)
    await events.check_kept(0)


async def test_the_door_says_so_too(tmp_path: Path) -> None:
    async with platform(tmp_path / "platform") as local:
        for _ in range(3):
            await local.http.post("/v1/sandboxes", json={})
        await Retention(local.services.events, local.clock, Kept(event_count=1)).step()
        for url in ("/v1/events?after=1", "/v1/events?after=1&follow=true"):
            answer = await local.http.get(url)
            assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (
                400,
                "invalid_argument",
                "after",
            )
        assert len((await local.http.get("/v1/events")).json()["items"]) == 1


async def test_facts_without_a_server_do_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "_KEPT", 50)
    monkeypatch.setattr(feeds, "_COMPACT_AFTER", 10)
    feed = feeds.Feed(tmp_path / "feed", FakeClock())
    feed.open()
    told = [feed.tell(FactKind.PROCESS_KILLED, SUBJECT).seq for _ in range(500)]
    assert len((tmp_path / "feed").read_bytes().splitlines()) <= 62
    again = feeds.Feed(tmp_path / "feed", FakeClock())
    again.open()
    assert again.tell(FactKind.PROCESS_KILLED, SUBJECT).seq == told[-1] + 1


def test_the_log_of_a_running_daemon_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_LOG_LIMIT", 1000)
    log = tmp_path / "server.log"
    running = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # as the daemon has it
    daemon = keeper.Daemon("server", "x", str(tmp_path), str(tmp_path), "python", {})
    lines = [b"line %04d\n" % number for number in range(300)]
    kept = b""
    for line in lines:
        os.write(running, line)
        before = log.stat().st_size
        daemon.bound_log()
        if log.stat().st_size < before:
            kept += (tmp_path / "server.log.1").read_bytes()
        assert log.stat().st_size <= 1000
    os.close(running)
    assert kept + log.read_bytes() == b"".join(lines), "a line was lost or written twice"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["server.log", "server.log.1"]
