"""Snapshots that go to the object store and come back, through the whole platform on fakes; and a kill at every step."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandkeep.engine.journal import Entry
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


async def made(here: LocalPlatform, *names: str, kind: str = "disk") -> str:
    """Stopped or paused, with a snapshot of each name in which `mine` holds it, and `same` is as in the others."""
    view = await call(here, "POST", "", 201, name="dev", persistence="full" if kind == "full" else "volume")
    (here.disks.path(view["id"]) / "same").write_text("same" * 90_000)
    for name in names:
        (here.disks.path(view["id"]) / "mine").write_text(name)
        await call(here, "POST", "/dev/snapshots", 201, name=name, kind=kind)
    (here.disks.path(view["id"]) / "mine").write_text("now")
    await call(here, "POST", "/dev/stop")
    return str(view["id"])


async def generations(here: LocalPlatform) -> int:
    return len((await here.disks.contents()).generations)


def stored(here: LocalPlatform, what: str) -> set[str]:
    return {key for key in here.objects.held if f"/{what}/" in key}


async def well(here: LocalPlatform) -> bool:
    return (await here.node.fsck())["findings"] == []


@pytest.mark.parametrize("kind", ["disk", "full"])
async def test_there_and_back(here: LocalPlatform, kind: str) -> None:
    sandbox = await made(here, "then", "later", kind=kind)
    view = await call(here, "POST", "/dev/snapshots/then/archive")
    assert view["archived"] == sum(len(here.objects.held[key]) for key in stored(here, "pieces"))
    assert (view["name"], view["kind"]) == ("then", kind)
    assert await generations(here) == 1 and await well(here)
    assert [one["archived"] for one in (await call(here, "GET", "/dev/snapshots"))["items"]] == [view["archived"], None]
    again = await call(here, "POST", "/dev/snapshots/then/archive")
    assert again["archived"] == view["archived"], "twice is once"
    await here.restart_node()
    assert await generations(here) == 1 and await well(here)
    view = await call(here, "POST", "/dev/snapshots/then/wake")
    assert view["archived"] is None
    assert (await call(here, "POST", "/dev/snapshots/then/wake"))["archived"] is None
    assert await generations(here) == 2 and await well(here)
    await call(here, "POST", "/dev/rollback", snapshot="then", keep_before=False)
    if kind == "full":
        await call(here, "POST", "/dev/resume")
    assert (here.disks.path(sandbox) / "mine").read_text() == "then"
    told = [one["kind"] for one in (await here.http.get("/v1/events", params={"subject": sandbox})).json()["items"]]
    assert [one for one in told if one in ("snapshot.archived", "snapshot.woken")] == [
        "snapshot.archived",
        "snapshot.woken",
    ]
    await call(here, "DELETE", "/dev", 204)
    assert here.objects.held == {}


async def test_what_needs_it_says_that_it_has_to_be_woken(here: LocalPlatform) -> None:
    await made(here, "then", "later")
    await call(here, "POST", "/dev/snapshots/then/archive")
    looks = [await here.http.get(f"/v1/sandboxes/dev/browse/{what}?snapshot=then&path=/") for what in ("list", "stat")]
    acts = [
        await here.http.post("/v1/sandboxes/dev/rollback", json={"snapshot": "then"}),
        await here.http.post("/v1/sandboxes/dev/fork", json={"snapshot": "then"}),
        await here.http.post("/v1/sandboxes/dev/restore", json={"snapshot": "then", "path": "/mine"}),
        await here.http.get("/v1/diff?before=dev@then&after=dev@later"),
    ]
    for answer in looks + acts:
        assert answer.status_code == 409 and "sandkeep wake dev@then" in answer.json()["hint"], answer.text
    assert len((await call(here, "GET", "/dev/snapshots"))["items"]) == 2, (
        "nothing was kept for a rollback that was none"
    )
    await call(here, "POST", "/dev/rollback", snapshot="later", keep_before=False)


async def test_each_uploads_what_the_store_has_not_and_takes_its_own_away(here: LocalPlatform) -> None:
    """Never what the sandbox or another snapshot needs."""
    sandbox = await made(here, "one", "two", "three")
    await call(here, "POST", "/dev/archive")
    own = set(stored(here, "pieces"))
    await call(here, "POST", "/dev/snapshots/one/archive")
    first = stored(here, "pieces") - own
    assert first, "an archived sandbox's snapshot can go there, too"
    await call(here, "POST", "/dev/snapshots/two/archive")
    await call(here, "POST", "/dev/wake")
    (here.disks.path(sandbox) / "same").write_text("other" * 90_000)
    await call(here, "POST", "/dev/archive")
    assert own & stored(here, "pieces"), "what the snapshots need stays, though the sandbox needs it no longer"
    await call(here, "DELETE", "/dev/snapshots/one", 204)
    assert len(stored(here, "snapshots")) == 1
    await here.restart_node()
    await call(here, "POST", "/dev/snapshots/two/wake")
    assert await well(here)
    await call(here, "POST", "/dev/rollback", 409, snapshot="two", keep_before=False)
    await call(here, "POST", "/dev/wake")
    await call(here, "POST", "/dev/rollback", snapshot="two", keep_before=False)
    assert (here.disks.path(sandbox) / "mine").read_text() == "two"
    assert (here.disks.path(sandbox) / "same").read_text() == "same" * 90_000
    for name in ("two", "three"):
        await call(here, "DELETE", f"/dev/snapshots/{name}", 204)
    assert stored(here, "snapshots") == set()
    await call(here, "DELETE", "/dev", 204)
    assert here.objects.held == {}


async def test_a_store_that_is_away_changes_nothing_and_a_delete_waits_for_it(here: LocalPlatform) -> None:
    await made(here, "then")
    here.objects.away = True
    await call(here, "POST", "/dev/snapshots/then/archive", 503)
    assert (await call(here, "GET", "/dev/snapshots/then"))["archived"] is None
    here.objects.away = False
    await call(here, "POST", "/dev/snapshots/then/archive")
    here.objects.away = True
    await call(here, "POST", "/dev/snapshots/then/wake", 503)
    assert (await call(here, "GET", "/dev/snapshots/then"))["archived"]
    assert await generations(here) == 0 and await well(here)
    await call(here, "DELETE", "/dev/snapshots/then", 503)
    here.objects.away = False
    with anyio.fail_after(30):
        while here.parts.records.snapshots:
            await here.services.reconciler.compare(first=False)  # as every few seconds
            await anyio.sleep(0.01)
    assert stored(here, "snapshots") == set() and stored(here, "pieces") == set()
    await call(here, "POST", "/dev/start")


async def test_damage_is_refused_and_heals_when_the_object_is_put_back(here: LocalPlatform) -> None:
    sandbox = await made(here, "then")
    await call(here, "POST", "/dev/snapshots/then/archive")
    good = dict(here.objects.held)
    for key in [key for key in good if not key.endswith("/key")]:
        middle = len(good[key]) // 2
        changed = good[key][:middle] + bytes([good[key][middle] ^ 1]) + good[key][middle + 1 :]
        for data in (good[key][:-1], changed, b"", None):
            here.objects.held = {other: held for other, held in good.items() if other != key}
            if data is not None:
                here.objects.held[key] = data
            answer = await call(here, "POST", "/dev/snapshots/then/wake", 409)
            assert "refused" in answer["detail"]
            assert await generations(here) == 0 and await well(here)
    here.objects.held = good
    await call(here, "POST", "/dev/snapshots/then/wake")
    await call(here, "POST", "/dev/rollback", snapshot="then", keep_before=False)
    assert (here.disks.path(sandbox) / "mine").read_text() == "then"


async def test_in_doubt_nothing_goes_from_the_store(here: LocalPlatform) -> None:
    """A manifest that is damaged, or the record of a snapshot that cannot be read, may name any piece."""
    await made(here, "one", "two")
    for name in ("one", "two"):
        await call(here, "POST", f"/dev/snapshots/{name}/archive")
    pieces = stored(here, "pieces")
    (two,) = [kept for kept in here.parts.records.snapshots.values() if kept.snapshot.name == "two"]
    key = f"sandboxes/{two.snapshot.sandbox_id}/snapshots/{two.id}"
    good = here.objects.held[key]
    here.objects.held[key] = good[:-1]
    await call(here, "DELETE", "/dev/snapshots/one", 204)
    assert stored(here, "pieces") == pieces and len(stored(here, "snapshots")) == 1
    here.objects.held[key] = good
    await call(here, "POST", "/dev/snapshots/two/wake")
    await call(here, "DELETE", "/dev/snapshots/two", 204)
    assert stored(here, "pieces") == set()


@pytest.mark.parametrize("verb", ["archive", "wake", "delete"])
async def test_a_kill_at_any_step_leaves_it_here_or_verified_in_the_store(
    here: LocalPlatform, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    sandbox = await made(here, "then", "other")
    await call(here, "POST", "/dev/snapshots/other/archive")
    step, number, reached = Entry.step, 0, True
    while reached:
        if verb != "archive":
            await call(here, "POST", "/dev/snapshots/then/archive")
        number, reached, seen = number + 1, False, 0

        def killed(self: Entry, name: str, **facts: Any) -> None:
            nonlocal seen, reached
            seen += 1
            step(self, name, **facts)
            if seen == number:
                reached = True
                here._node_scope.cancel()  # type: ignore[union-attr]
                raise anyio.get_cancelled_exc_class()

        monkeypatch.setattr(Entry, "step", killed)
        with anyio.move_on_after(5):
            if verb == "delete":
                await here.http.delete("/v1/sandboxes/dev/snapshots/then")
            else:
                await here.http.post(f"/v1/sandboxes/dev/snapshots/then/{verb}")
        monkeypatch.undo()
        await here.restart_node()
        found = [kept for kept in here.parts.records.snapshots.values() if kept.snapshot.name == "then"]
        assert await generations(here) == sum(kept.here for kept in found)
        assert await well(here)
        with anyio.fail_after(30):
            while True:  # the server follows, whatever became of it
                items = (await call(here, "GET", "/dev/snapshots"))["items"]
                rows = {one["id"]: one["archived"] for one in items}
                known = {kept.id: kept.snapshot.archived for kept in here.parts.records.snapshots.values()}
                operation = (await call(here, "GET", "/dev"))["phase"]
                if rows == known and (verb != "delete" or len(rows) == 1) and operation == "stopped":
                    break
                await here.services.reconciler.compare(first=False)
                await anyio.sleep(0.01)
        if verb == "delete":
            assert len(stored(here, "snapshots")) == 1
            (here.disks.path(sandbox) / "mine").write_text("then")
            with anyio.fail_after(30):
                while (await here.http.post("/v1/sandboxes/dev/snapshots", json={"name": "then"})).status_code != 201:
                    await here.services.reconciler.compare(first=False)
        await call(here, "POST", "/dev/snapshots/then/archive")
        await call(here, "POST", "/dev/snapshots/then/wake")
        await call(here, "POST", "/dev/rollback", snapshot="then", keep_before=False)
        assert (here.disks.path(sandbox) / "mine").read_text() == "then"
    assert number > 3
    await call(here, "POST", "/dev/snapshots/other/wake")
    await call(here, "POST", "/dev/rollback", snapshot="other", keep_before=False)
    assert (here.disks.path(sandbox) / "mine").read_text() == "other"
    await call(here, "DELETE", "/dev", 204)
    assert here.objects.held == {}
