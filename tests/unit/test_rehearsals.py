"""Rehearsals of archives through the whole platform on fakes: what is found, where it is said, and when one comes by itself."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandkeep.control.rehearsals import Rehearsals
from sandkeep.testing.platform import LocalPlatform, platform

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[LocalPlatform]:
    async with platform(tmp_path) as made:
        yield made


async def call(here: LocalPlatform, method: str, path: str, status: int = 200, **body: Any) -> Any:
    answer = await here.http.request(method, f"/v1/sandboxes{path}", json=body or None)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


async def archived(here: LocalPlatform, name: str = "dev") -> str:
    view = await call(here, "POST", "", 201, name=name)
    (here.disks.path(view["id"]) / "mine").write_text("then")
    await call(here, "POST", f"/{name}/snapshots", 201, name="then")
    (here.disks.path(view["id"]) / "mine").write_text("now")
    await call(here, "POST", f"/{name}/stop")
    await call(here, "POST", f"/{name}/snapshots/then/archive")
    await call(here, "POST", f"/{name}/archive")
    return str(view["id"])


async def told(here: LocalPlatform, sandbox: str) -> list[tuple[str, str | None]]:
    answer = await here.http.get("/v1/events", params={"subject": sandbox})
    return [
        (one["kind"], one["data"]["snapshot"]) for one in answer.json()["items"] if one["kind"].startswith("archive.")
    ]


async def damaged(here: LocalPlatform) -> list[str]:
    conditions = (await call(here, "GET", "/dev"))["conditions"]
    return [one["reason"] for one in conditions if one["kind"] == "ArchiveDamaged"]


async def test_what_is_found_is_said_everywhere_until_it_is_whole_again(here: LocalPlatform) -> None:
    sandbox = await archived(here)
    found = await call(here, "POST", "/dev/archive/verify")
    assert found["intact"] and "restored and compared" in found["reason"]
    good = dict(here.objects.held)
    (key,) = [key for key in good if "/snapshots/" in key]
    here.objects.held[key] = good[key][:-1]
    assert (await call(here, "POST", "/dev/archive/verify"))["intact"], "the sandbox's own is another"
    found = await call(here, "POST", "/dev/archive/verify", snapshot="then")
    assert not found["intact"] and "refused" in found["reason"]
    (reason,) = await damaged(here)
    assert reason.startswith("snapshot then: ")
    assert (await call(here, "POST", "/dev/archive/verify"))["intact"]
    assert await damaged(here) == [reason], "that another is whole says nothing of it"
    why = (await here.http.get("/v1/sandboxes/dev/why")).json()
    assert "sandkeep archive --verify dev" in str(why)
    here.objects.held = good
    assert (await call(here, "POST", "/dev/archive/verify", snapshot="then"))["intact"]
    assert await damaged(here) == []
    snapshot = (await call(here, "GET", "/dev/snapshots/then"))["id"]
    assert await told(here, sandbox) == [
        ("archive.rehearsed", None),
        ("archive.rehearsed", None),
        ("archive.damaged", snapshot),
        ("archive.rehearsed", None),
        ("archive.rehearsed", snapshot),
    ]
    metrics = (await here.http.get("/metrics")).text
    assert 'sandkeep_archive_rehearsals_total{result="damaged"}' in metrics
    contents = await here.disks.contents()
    assert (len(contents.templates), contents.disks, contents.generations) == (1, {}, {}), "nothing is left of it"
    assert (await here.node.fsck())["findings"] == []


async def test_one_that_cannot_be_tried_is_none_that_is_damaged(here: LocalPlatform) -> None:
    await call(here, "POST", "", 201, name="dev")
    assert "no archive" in (await call(here, "POST", "/dev/archive/verify", 409))["detail"]
    await call(here, "DELETE", "/dev", 204)
    sandbox = await archived(here)
    here.objects.away = True
    await call(here, "POST", "/dev/archive/verify", 503)
    here.objects.away = False
    assert await damaged(here) == [] and await told(here, sandbox) == []


async def test_chance_picks_one_every_now_and_then(here: LocalPlatform) -> None:
    sandbox = await archived(here)
    of: list[int] = []

    def choose(count: int) -> int:
        of.append(count)
        return len(of) % count

    services, paired = here.services, True
    parts = services.events, services.sandboxes, services.snapshots, here.runner, here.clock
    rehearsals = Rehearsals(*parts, every=3600.0, choose=choose)  # type: ignore[arg-type]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rehearsals.run, lambda: paired)
        for expected in (1, 2):
            with anyio.fail_after(20):
                while len(await told(here, sandbox)) < expected:
                    here.clock.advance(1800.0)
                    await anyio.sleep(0.02)
        tasks.cancel_scope.cancel()
    assert set(of) == {2}, "the sandbox's, and its snapshot's"
    assert {snapshot is None for _, snapshot in await told(here, sandbox)} == {True, False}
