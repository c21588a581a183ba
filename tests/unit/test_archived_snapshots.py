"""Snapshots that go to the object store and come back, through the whole platform on fakes; and a kill at every step."""

import anyio
import pytest

from sandkeep.testing.platform import LocalPlatform
from support.local import call, dies_at

pytestmark = pytest.mark.anyio


async def made(local: LocalPlatform, *names: str, kind: str = "disk") -> str:
    """Stopped or paused, with a snapshot of each name in which `mine` holds it, and `same` is as in the others."""
    view = await call(local, "POST", "", 201, name="dev", persistence="full" if kind == "full" else "volume")
    (local.disks.path(view["id"]) / "same").write_text("same" * 90_000)
    for name in names:
        (local.disks.path(view["id"]) / "mine").write_text(name)
        await call(local, "POST", "/dev/snapshots", 201, name=name, kind=kind)
    (local.disks.path(view["id"]) / "mine").write_text("now")
    await call(local, "POST", "/dev/stop")
    return str(view["id"])


async def generations(local: LocalPlatform) -> int:
    return len((await local.disks.contents()).generations)


def stored(local: LocalPlatform, what: str) -> set[str]:
    return {key for key in local.objects.held if f"/{what}/" in key}


async def well(local: LocalPlatform) -> bool:
    return (await local.node.fsck())["findings"] == []


@pytest.mark.parametrize("kind", ["disk", "full"])
async def test_there_and_back(local: LocalPlatform, kind: str) -> None:
    sandbox = await made(local, "then", "later", kind=kind)
    view = await call(local, "POST", "/dev/snapshots/then/archive")
    assert view["archived"] == sum(len(local.objects.held[key]) for key in stored(local, "pieces"))
    assert (view["name"], view["kind"]) == ("then", kind)
    assert await generations(local) == 1 and await well(local)
    assert [one["archived"] for one in (await call(local, "GET", "/dev/snapshots"))["items"]] == [
        view["archived"],
        None,
    ]
    again = await call(local, "POST", "/dev/snapshots/then/archive")
    assert again["archived"] == view["archived"], "twice is once"
    await local.restart_node()
    assert await generations(local) == 1 and await well(local)
    view = await call(local, "POST", "/dev/snapshots/then/wake")
    assert view["archived"] is None
    assert (await call(local, "POST", "/dev/snapshots/then/wake"))["archived"] is None
    assert await generations(local) == 2 and await well(local)
    await call(local, "POST", "/dev/rollback", snapshot="then", keep_before=False)
    if kind == "full":
        await call(local, "POST", "/dev/resume")
    assert (local.disks.path(sandbox) / "mine").read_text() == "then"
    told = [one["kind"] for one in (await local.http.get("/v1/events", params={"subject": sandbox})).json()["items"]]
    assert [one for one in told if one in ("snapshot.archived", "snapshot.woken")] == [
        "snapshot.archived",
        "snapshot.woken",
    ]
    await call(local, "DELETE", "/dev", 204)
    assert local.objects.held == {}


async def test_what_needs_it_says_that_it_has_to_be_woken(local: LocalPlatform) -> None:
    await made(local, "then", "later")
    await call(local, "POST", "/dev/snapshots/then/archive")
    looks = [await local.http.get(f"/v1/sandboxes/dev/browse/{what}?snapshot=then&path=/") for what in ("list", "stat")]
    acts = [
        await local.http.post("/v1/sandboxes/dev/rollback", json={"snapshot": "then"}),
        await local.http.post("/v1/sandboxes/dev/fork", json={"snapshot": "then"}),
        await local.http.post("/v1/sandboxes/dev/restore", json={"snapshot": "then", "path": "/mine"}),
        await local.http.get("/v1/diff?before=dev@then&after=dev@later"),
    ]
    for answer in looks + acts:
        assert answer.status_code == 409 and "sandkeep wake dev@then" in answer.json()["hint"], answer.text
    assert len((await call(local, "GET", "/dev/snapshots"))["items"]) == 2, (
        "nothing was kept for a rollback that was none"
    )
    await call(local, "POST", "/dev/rollback", snapshot="later", keep_before=False)


async def test_each_uploads_what_the_store_has_not_and_takes_its_own_away(local: LocalPlatform) -> None:
    """Never what the sandbox or another snapshot needs."""
    sandbox = await made(local, "one", "two", "three")
    await call(local, "POST", "/dev/archive")
    own = set(stored(local, "pieces"))
    await call(local, "POST", "/dev/snapshots/one/archive")
    first = stored(local, "pieces") - own
    assert first, "an archived sandbox's snapshot can go there, too"
    await call(local, "POST", "/dev/snapshots/two/archive")
    await call(local, "POST", "/dev/wake")
    (local.disks.path(sandbox) / "same").write_text("other" * 90_000)
    await call(local, "POST", "/dev/archive")
    assert own & stored(local, "pieces"), "what the snapshots need stays, though the sandbox needs it no longer"
    await call(local, "DELETE", "/dev/snapshots/one", 204)
    assert len(stored(local, "snapshots")) == 1
    await local.restart_node()
    await call(local, "POST", "/dev/snapshots/two/wake")
    assert await well(local)
    await call(local, "POST", "/dev/rollback", 409, snapshot="two", keep_before=False)
    await call(local, "POST", "/dev/wake")
    await call(local, "POST", "/dev/rollback", snapshot="two", keep_before=False)
    assert (local.disks.path(sandbox) / "mine").read_text() == "two"
    assert (local.disks.path(sandbox) / "same").read_text() == "same" * 90_000
    for name in ("two", "three"):
        await call(local, "DELETE", f"/dev/snapshots/{name}", 204)
    assert stored(local, "snapshots") == set()
    await call(local, "DELETE", "/dev", 204)
    assert local.objects.held == {}


async def test_a_store_that_is_away_changes_nothing_and_a_delete_waits_for_it(local: LocalPlatform) -> None:
    await made(local, "then")
    local.objects.away = True
    await call(local, "POST", "/dev/snapshots/then/archive", 503)
    assert (await call(local, "GET", "/dev/snapshots/then"))["archived"] is None
    local.objects.away = False
    await call(local, "POST", "/dev/snapshots/then/archive")
    local.objects.away = True
    await call(local, "POST", "/dev/snapshots/then/wake", 503)
    assert (await call(local, "GET", "/dev/snapshots/then"))["archived"]
    assert await generations(local) == 0 and await well(local)
    await call(local, "DELETE", "/dev/snapshots/then", 503)
    local.objects.away = False
    with anyio.fail_after(30):
        while local.parts.records.snapshots:
            await local.services.reconciler.compare(first=False)  # as every few seconds
            await anyio.sleep(0.01)
    assert stored(local, "snapshots") == set() and stored(local, "pieces") == set()
    await call(local, "POST", "/dev/start")


async def test_damage_is_refused_and_heals_when_the_object_is_put_back(local: LocalPlatform) -> None:
    sandbox = await made(local, "then")
    await call(local, "POST", "/dev/snapshots/then/archive")
    good = dict(local.objects.held)
    for key in [key for key in good if not key.endswith("/key")]:
        middle = len(good[key]) // 2
        changed = good[key][:middle] + bytes([good[key][middle] ^ 1]) + good[key][middle + 1 :]
        for data in (good[key][:-1], changed, b"", None):
            local.objects.held = {other: held for other, held in good.items() if other != key}
            if data is not None:
                local.objects.held[key] = data
            answer = await call(local, "POST", "/dev/snapshots/then/wake", 409)
            assert "refused" in answer["detail"]
            assert await generations(local) == 0 and await well(local)
    local.objects.held = good
    await call(local, "POST", "/dev/snapshots/then/wake")
    await call(local, "POST", "/dev/rollback", snapshot="then", keep_before=False)
    assert (local.disks.path(sandbox) / "mine").read_text() == "then"


async def test_in_doubt_nothing_goes_from_the_store(local: LocalPlatform) -> None:
    """A manifest that is damaged, or the record of a snapshot that cannot be read, may name any piece."""
    await made(local, "one", "two")
    for name in ("one", "two"):
        await call(local, "POST", f"/dev/snapshots/{name}/archive")
    pieces = stored(local, "pieces")
    (two,) = [kept for kept in local.parts.records.snapshots.values() if kept.snapshot.name == "two"]
    key = f"sandboxes/{two.snapshot.sandbox_id}/snapshots/{two.id}"
    good = local.objects.held[key]
    local.objects.held[key] = good[:-1]
    await call(local, "DELETE", "/dev/snapshots/one", 204)
    assert stored(local, "pieces") == pieces and len(stored(local, "snapshots")) == 1
    local.objects.held[key] = good
    await call(local, "POST", "/dev/snapshots/two/wake")
    await call(local, "DELETE", "/dev/snapshots/two", 204)
    assert stored(local, "pieces") == set()


@pytest.mark.parametrize("verb", ["archive", "wake", "delete"])
async def test_a_kill_at_any_step_leaves_it_here_or_verified_in_the_store(
    local: LocalPlatform, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    sandbox = await made(local, "then", "other")
    await call(local, "POST", "/dev/snapshots/other/archive")
    number, reached = 0, True
    while reached:
        if verb != "archive":
            await call(local, "POST", "/dev/snapshots/then/archive")
        number += 1
        with dies_at(number, local, monkeypatch) as death:
            if verb == "delete":
                await local.http.delete("/v1/sandboxes/dev/snapshots/then")
            else:
                await local.http.post(f"/v1/sandboxes/dev/snapshots/then/{verb}")
        reached = death.reached
        await local.restart_node()
        found = [kept for kept in local.parts.records.snapshots.values() if kept.snapshot.name == "then"]
        assert await generations(local) == sum(kept.here for kept in found)
        assert await well(local)
        with anyio.fail_after(30):
            while True:  # the server follows, whatever became of it
                items = (await call(local, "GET", "/dev/snapshots"))["items"]
                rows = {one["id"]: one["archived"] for one in items}
                known = {kept.id: kept.snapshot.archived for kept in local.parts.records.snapshots.values()}
                operation = (await call(local, "GET", "/dev"))["phase"]
                if rows == known and (verb != "delete" or len(rows) == 1) and operation == "stopped":
                    break
                await local.services.reconciler.compare(first=False)
                await anyio.sleep(0.01)
        if verb == "delete":
            assert len(stored(local, "snapshots")) == 1
            (local.disks.path(sandbox) / "mine").write_text("then")
            with anyio.fail_after(30):
                while (await local.http.post("/v1/sandboxes/dev/snapshots", json={"name": "then"})).status_code != 201:
                    await local.services.reconciler.compare(first=False)
        await call(local, "POST", "/dev/snapshots/then/archive")
        await call(local, "POST", "/dev/snapshots/then/wake")
        await call(local, "POST", "/dev/rollback", snapshot="then", keep_before=False)
        assert (local.disks.path(sandbox) / "mine").read_text() == "then"
    assert number > 3
    await call(local, "POST", "/dev/snapshots/other/wake")
    await call(local, "POST", "/dev/rollback", snapshot="other", keep_before=False)
    assert (local.disks.path(sandbox) / "mine").read_text() == "other"
    await call(local, "DELETE", "/dev", 204)
    assert local.objects.held == {}
