"""Rehearsals of archives through the whole platform on fakes: what is found, where it is said, and when one comes by itself."""

import anyio
import pytest

from sandkeep.control.rehearsals import Rehearsals
from sandkeep.testing.platform import LocalPlatform
from support.local import call

pytestmark = pytest.mark.anyio


async def archived(local: LocalPlatform, name: str = "dev") -> str:
    view = await call(local, "POST", "", 201, name=name)
    (local.disks.path(view["id"]) / "mine").write_text("then")
    await call(local, "POST", f"/{name}/snapshots", 201, name="then")
    (local.disks.path(view["id"]) / "mine").write_text("now")
    await call(local, "POST", f"/{name}/stop")
    await call(local, "POST", f"/{name}/snapshots/then/archive")
    await call(local, "POST", f"/{name}/archive")
    return str(view["id"])


async def told(local: LocalPlatform, sandbox: str) -> list[tuple[str, str | None]]:
    answer = await local.http.get("/v1/events", params={"subject": sandbox})
    return [
        (one["kind"], one["data"]["snapshot"]) for one in answer.json()["items"] if one["kind"].startswith("archive.")
    ]


async def damaged(local: LocalPlatform) -> list[str]:
    conditions = (await call(local, "GET", "/dev"))["conditions"]
    return [one["reason"] for one in conditions if one["kind"] == "ArchiveDamaged"]


async def test_what_is_found_is_said_everywhere_until_it_is_whole_again(local: LocalPlatform) -> None:
    sandbox = await archived(local)
    found = await call(local, "POST", "/dev/archive/verify")
    assert found["intact"] and "restored and compared" in found["reason"]
    good = dict(local.objects.held)
    (key,) = [key for key in good if "/snapshots/" in key]
    local.objects.held[key] = good[key][:-1]
    assert (await call(local, "POST", "/dev/archive/verify"))["intact"], "the sandbox's own is another"
    found = await call(local, "POST", "/dev/archive/verify", snapshot="then")
    assert not found["intact"] and "refused" in found["reason"]
    (reason,) = await damaged(local)
    assert reason.startswith("snapshot then: ")
    assert (await call(local, "POST", "/dev/archive/verify"))["intact"]
    assert await damaged(local) == [reason], "that another is whole says nothing of it"
    why = (await local.http.get("/v1/sandboxes/dev/why")).json()
    assert "sandkeep archive --verify dev" in str(why)
    local.objects.held = good
    assert (await call(local, "POST", "/dev/archive/verify", snapshot="then"))["intact"]
    assert await damaged(local) == []
    snapshot = (await call(local, "GET", "/dev/snapshots/then"))["id"]
    assert await told(local, sandbox) == [
        ("archive.rehearsed", None),
        ("archive.rehearsed", None),
        ("archive.damaged", snapshot),
        ("archive.rehearsed", None),
        ("archive.rehearsed", snapshot),
    ]
    metrics = (await local.http.get("/metrics")).text
    assert 'sandkeep_archive_rehearsals_total{result="damaged"}' in metrics
    contents = await local.disks.contents()
    assert (len(contents.templates), contents.disks, contents.generations) == (1, {}, {}), "nothing is left of it"
    assert (await local.node.fsck())["findings"] == []


async def test_one_that_cannot_be_tried_is_none_that_is_damaged(local: LocalPlatform) -> None:
    await call(local, "POST", "", 201, name="dev")
    assert "no archive" in (await call(local, "POST", "/dev/archive/verify", 409))["detail"]
    await call(local, "DELETE", "/dev", 204)
    sandbox = await archived(local)
    local.objects.away = True
    await call(local, "POST", "/dev/archive/verify", 503)
    local.objects.away = False
    assert await damaged(local) == [] and await told(local, sandbox) == []


async def test_chance_picks_one_every_now_and_then(local: LocalPlatform) -> None:
    sandbox = await archived(local)
    of: list[int] = []

    def choose(count: int) -> int:
        of.append(count)
        return len(of) % count

    services, paired = local.services, True
    parts = services.events, services.sandboxes, services.snapshots, local.runner, local.clock
    rehearsals = Rehearsals(*parts, every=3600.0, choose=choose)  # type: ignore[arg-type]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rehearsals.run, lambda: paired)
        for expected in (1, 2):
            with anyio.fail_after(20):
                while len(await told(local, sandbox)) < expected:
                    local.clock.advance(1800.0)
                    await anyio.sleep(0.02)
        tasks.cancel_scope.cancel()
    assert set(of) == {2}, "the sandbox's, and its snapshot's"
    assert {snapshot is None for _, snapshot in await told(local, sandbox)} == {True, False}
