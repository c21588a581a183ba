"""Archive and wake through the whole platform on fakes: phases, events, and a kill at every step."""

import anyio
import pytest

from sandkeep.domain.sandbox import Phase
from sandkeep.testing.platform import LocalPlatform
from support.local import call, dies_at

pytestmark = pytest.mark.anyio


async def made(local: LocalPlatform, persistence: str = "volume", stop: str = "stop") -> str:
    view = await call(local, "POST", "", 201, name="dev", persistence=persistence, labels={"team": "web"})
    (local.disks.path(view["id"]) / "mine").write_text("kept")
    if stop:
        await call(local, "POST", f"/dev/{stop}")
    return str(view["id"])


async def events(local: LocalPlatform, sandbox_id: str) -> list[str]:
    answer = await local.http.get("/v1/events", params={"subject": sandbox_id})
    return [event["kind"] for event in answer.json()["items"]]


async def test_there_and_back(local: LocalPlatform) -> None:
    sandbox = await made(local)
    view = await call(local, "POST", "/dev/archive")
    assert (view["phase"], view["hold"], view["labels"]) == ("archived", None, {"team": "web"})
    assert "read back" in view["reason"]
    assert (await local.disks.contents()).disks == {}
    assert await local.node.fsck() == await local.node.fsck()
    assert (await local.node.fsck())["findings"] == []
    assert (await call(local, "GET", "/dev/stats"))["disk"] == 0
    assert (await call(local, "POST", "/dev/archive"))["phase"] == "archived", "twice is once"
    view = await call(local, "POST", "/dev/wake")
    assert view["phase"] == "stopped"
    assert (local.disks.path(sandbox) / "mine").read_text() == "kept"
    assert (await call(local, "POST", "/dev/wake"))["phase"] == "stopped", "what is here stays as it is"
    told = await events(local, sandbox)
    assert [kind for kind in told if "archiv" in kind or "wak" in kind or "wok" in kind] == [
        "sandbox.archiving",
        "sandbox.archived",
        "sandbox.waking",
        "sandbox.woken",
    ]


async def test_memory_comes_back_if_it_fits_and_else_the_way_out_is_named(local: LocalPlatform) -> None:
    sandbox = await made(local, "full", "pause")
    view = await call(local, "POST", "/dev/archive")
    assert view["phase"] == "archived" and "memory" in view["reason"]
    await local.restart_node()
    builds = {runtime: runtime._build for runtime in local.runtimes.values()}
    for runtime in builds:
        runtime._build = "another"
    answer = await call(local, "POST", "/dev/wake", 400)
    assert "sandkeep wake dev --disk-only" in answer["hint"]
    assert (await call(local, "GET", "/dev"))["phase"] == "archived"
    assert (await local.disks.contents()).disks == {}
    for runtime, build in builds.items():
        runtime._build = build
    assert (await call(local, "POST", "/dev/wake"))["hold"] == "disk"
    assert (await call(local, "POST", "/dev/resume"))["phase"] == "running"
    await call(local, "POST", "/dev/pause")
    await call(local, "POST", "/dev/archive")
    view = await call(local, "POST", "/dev/wake", disk_only=True)
    assert (view["phase"], view["hold"]) == ("stopped", None)
    assert (local.disks.path(sandbox) / "mine").read_text() == "kept"


async def test_what_needs_its_disk_is_refused_or_brings_it_back(local: LocalPlatform) -> None:
    await made(local)
    await call(local, "POST", "/dev/archive")
    for path, body in (("snapshots", {"name": "one"}), ("fork", {}), ("stop", {})):
        answer = await call(local, "POST", f"/dev/{path}", 409, **body)
        assert "archived" in answer["detail"], path
    answer = await local.http.get("/v1/sandboxes/dev/browse/list")
    assert answer.status_code == 409 and "sandkeep wake dev" in answer.json()["hint"]
    changed = await call(local, "PATCH", "/dev", labels={"team": "db"}, disk=16 << 30)
    assert (changed["phase"], changed["labels"]) == ("archived", {"team": "db"})
    assert (await call(local, "POST", "/dev/start"))["phase"] == "running"
    assert next(iter(local.disks.limits.values())) == 16 << 30


async def test_only_what_stands_still_can_be_archived(local: LocalPlatform) -> None:
    await made(local, stop="")
    assert "sandkeep stop dev" in (await call(local, "POST", "/dev/archive", 409))["hint"]
    await call(local, "POST", "/dev/pause", hold="memory")
    assert "in memory" in (await call(local, "POST", "/dev/archive", 409))["detail"]
    await call(local, "POST", "/dev/resume")


async def test_a_store_that_is_away_changes_nothing_and_a_delete_waits_for_it(local: LocalPlatform) -> None:
    sandbox = await made(local)
    local.objects.away = True
    await call(local, "POST", "/dev/archive", 503)
    assert (await call(local, "GET", "/dev"))["phase"] == "stopped"
    assert (local.disks.path(sandbox) / "mine").read_text() == "kept"
    local.objects.away = False
    await call(local, "POST", "/dev/archive")
    local.objects.away = True
    await call(local, "POST", "/dev/wake", 503)
    assert (await call(local, "GET", "/dev"))["phase"] == "archived"
    local.objects.away = False
    assert local.objects.held
    await call(local, "DELETE", "/dev", 204)
    assert local.objects.held == {}
    await call(local, "GET", "/dev", 404)


async def test_deleting_one_that_was_woken_or_never_quite_archived_leaves_nothing_in_the_store(
    local: LocalPlatform,
) -> None:
    await made(local)
    put = local.objects.put

    async def torn(key: str, data: bytes) -> None:
        await put(key, b"" if "pieces" in key else data)

    local.objects.put = torn  # type: ignore[method-assign]
    assert "refused" in (await call(local, "POST", "/dev/archive", 409))["detail"]
    local.objects.put = put  # type: ignore[method-assign]
    assert local.objects.held
    await call(local, "DELETE", "/dev", 204)
    assert local.objects.held == {}
    await made(local)
    await call(local, "POST", "/dev/archive")
    await call(local, "POST", "/dev/wake")
    await call(local, "DELETE", "/dev", 204)
    assert local.objects.held == {}


async def test_damage_is_refused_and_what_is_archived_stays_so(local: LocalPlatform) -> None:
    sandbox = await made(local)
    await call(local, "POST", "/dev/archive")
    good = dict(local.objects.held)
    for key in [key for key in good if not key.endswith("/key")]:
        local.objects.held = {**good, key: good[key][:-1]}
        answer = await call(local, "POST", "/dev/wake", 409)
        assert "refused" in answer["detail"]
        assert (await call(local, "GET", "/dev"))["phase"] == "archived"
        assert (await local.disks.contents()).disks == {}
    local.objects.held = good
    await call(local, "POST", "/dev/wake")
    assert (local.disks.path(sandbox) / "mine").read_text() == "kept"


async def test_snapshots_stay_and_what_came_after_them_comes_back(local: LocalPlatform) -> None:
    sandbox = await made(local)
    await call(local, "POST", "/dev/snapshots", 201, name="before")
    (local.disks.path(sandbox) / "mine").write_text("later")
    await call(local, "POST", "/dev/archive")
    assert len((await local.disks.contents()).generations) == 1
    await local.restart_node()
    await call(local, "POST", "/dev/wake")
    assert (local.disks.path(sandbox) / "mine").read_text() == "later"
    await call(local, "POST", "/dev/rollback", snapshot="before", keep_before=False)
    assert (local.disks.path(sandbox) / "mine").read_text() == "kept"
    await call(local, "DELETE", "/dev", 204)


@pytest.mark.parametrize("persistence", ["volume", "full"])
@pytest.mark.parametrize("verb", ["archive", "wake"])
async def test_a_kill_at_any_step_leaves_it_here_or_verified_in_the_store(
    local: LocalPlatform, monkeypatch: pytest.MonkeyPatch, verb: str, persistence: str
) -> None:
    sandbox = await made(local, persistence, "pause" if persistence == "full" else "stop")
    await call(local, "POST", "/dev/archive")
    if verb == "archive":
        await call(local, "POST", "/dev/wake")
    number, reached = 0, True
    while reached:
        number += 1
        with dies_at(number, local, monkeypatch) as death:
            await local.http.post(f"/v1/sandboxes/dev/{verb}")
        reached = death.reached
        await local.restart_node()
        record = local.parts.records.sandboxes[sandbox]
        contents = await local.disks.contents()
        if record.phase is Phase.ARCHIVED:
            assert contents.disks == {} and contents.generations == {}
        else:
            assert (local.disks.path(sandbox) / "mine").read_text() == "kept"
            assert (record.phase is Phase.PAUSED) == (persistence == "full")
        assert (await local.node.fsck())["findings"] == []
        with anyio.fail_after(20):
            while (await call(local, "GET", "/dev"))["phase"] not in ("archived", "stopped", "paused"):
                await anyio.sleep(0.01)
        # Whatever became of it, both ways are open.
        await call(local, "POST", "/dev/archive")
        if verb == "archive":
            await call(local, "POST", "/dev/wake")
            assert (local.disks.path(sandbox) / "mine").read_text() == "kept"
    assert number > 3
    await call(local, "DELETE", "/dev", 204)
    assert local.objects.held == {}
