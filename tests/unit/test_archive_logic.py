"""Archive and wake through the whole platform on fakes: phases, events, and a kill at every step."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandkeep.domain.sandbox import Phase
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


async def made(here: LocalPlatform, persistence: str = "volume", stop: str = "stop") -> str:
    view = await call(here, "POST", "", 201, name="dev", persistence=persistence, labels={"team": "web"})
    (here.disks.path(view["id"]) / "mine").write_text("kept")
    if stop:
        await call(here, "POST", f"/dev/{stop}")
    return str(view["id"])


async def events(here: LocalPlatform, sandbox_id: str) -> list[str]:
    answer = await here.http.get("/v1/events", params={"subject": sandbox_id})
    return [event["kind"] for event in answer.json()["items"]]


async def test_there_and_back(here: LocalPlatform) -> None:
    sandbox = await made(here)
    view = await call(here, "POST", "/dev/archive")
    assert (view["phase"], view["hold"], view["labels"]) == ("archived", None, {"team": "web"})
    assert "read back" in view["reason"]
    assert (await here.disks.contents()).disks == {}
    assert await here.node.fsck() == await here.node.fsck()
    assert (await here.node.fsck())["findings"] == []
    assert (await call(here, "GET", "/dev/stats"))["disk"] == 0
    assert (await call(here, "POST", "/dev/archive"))["phase"] == "archived", "twice is once"
    view = await call(here, "POST", "/dev/wake")
    assert view["phase"] == "stopped"
    assert (here.disks.path(sandbox) / "mine").read_text() == "kept"
    assert (await call(here, "POST", "/dev/wake"))["phase"] == "stopped", "what is here stays as it is"
    told = await events(here, sandbox)
    assert [kind for kind in told if "archiv" in kind or "wak" in kind or "wok" in kind] == [
        "sandbox.archiving",
        "sandbox.archived",
        "sandbox.waking",
        "sandbox.woken",
    ]


async def test_memory_comes_back_if_it_fits_and_else_the_way_out_is_named(here: LocalPlatform) -> None:
    sandbox = await made(here, "full", "pause")
    view = await call(here, "POST", "/dev/archive")
    assert view["phase"] == "archived" and "memory" in view["reason"]
    await here.restart_node()
    builds = {runtime: runtime._build for runtime in here.runtimes.values()}
    for runtime in builds:
        runtime._build = "another"
    answer = await call(here, "POST", "/dev/wake", 400)
    assert "sandkeep wake dev --disk-only" in answer["hint"]
    assert (await call(here, "GET", "/dev"))["phase"] == "archived"
    assert (await here.disks.contents()).disks == {}
    for runtime, build in builds.items():
        runtime._build = build
    assert (await call(here, "POST", "/dev/wake"))["hold"] == "disk"
    assert (await call(here, "POST", "/dev/resume"))["phase"] == "running"
    await call(here, "POST", "/dev/pause")
    await call(here, "POST", "/dev/archive")
    view = await call(here, "POST", "/dev/wake", disk_only=True)
    assert (view["phase"], view["hold"]) == ("stopped", None)
    assert (here.disks.path(sandbox) / "mine").read_text() == "kept"


async def test_what_needs_its_disk_is_refused_or_brings_it_back(here: LocalPlatform) -> None:
    await made(here)
    await call(here, "POST", "/dev/archive")
    for path, body in (("snapshots", {"name": "one"}), ("fork", {}), ("stop", {})):
        answer = await call(here, "POST", f"/dev/{path}", 409, **body)
        assert "archived" in answer["detail"], path
    answer = await here.http.get("/v1/sandboxes/dev/browse/list")
    assert answer.status_code == 409 and "sandkeep wake dev" in answer.json()["hint"]
    changed = await call(here, "PATCH", "/dev", labels={"team": "db"}, disk=16 << 30)
    assert (changed["phase"], changed["labels"]) == ("archived", {"team": "db"})
    assert (await call(here, "POST", "/dev/start"))["phase"] == "running"
    assert next(iter(here.disks.limits.values())) == 16 << 30


async def test_only_what_stands_still_can_be_archived(here: LocalPlatform) -> None:
    await made(here, stop="")
    assert "sandkeep stop dev" in (await call(here, "POST", "/dev/archive", 409))["hint"]
    await call(here, "POST", "/dev/pause", hold="memory")
    assert "in memory" in (await call(here, "POST", "/dev/archive", 409))["detail"]
    await call(here, "POST", "/dev/resume")


async def test_a_store_that_is_away_changes_nothing_and_a_delete_waits_for_it(here: LocalPlatform) -> None:
    sandbox = await made(here)
    here.objects.away = True
    await call(here, "POST", "/dev/archive", 503)
    assert (await call(here, "GET", "/dev"))["phase"] == "stopped"
    assert (here.disks.path(sandbox) / "mine").read_text() == "kept"
    here.objects.away = False
    await call(here, "POST", "/dev/archive")
    here.objects.away = True
    await call(here, "POST", "/dev/wake", 503)
    assert (await call(here, "GET", "/dev"))["phase"] == "archived"
    here.objects.away = False
    assert here.objects.held
    await call(here, "DELETE", "/dev", 204)
    assert here.objects.held == {}
    await call(here, "GET", "/dev", 404)


async def test_deleting_one_that_was_woken_or_never_quite_archived_leaves_nothing_in_the_store(
    here: LocalPlatform,
) -> None:
    await made(here)
    put = here.objects.put

    async def torn(key: str, data: bytes) -> None:
        await put(key, b"" if "pieces" in key else data)

    here.objects.put = torn  # type: ignore[method-assign]
    assert "refused" in (await call(here, "POST", "/dev/archive", 409))["detail"]
    here.objects.put = put  # type: ignore[method-assign]
    assert here.objects.held
    await call(here, "DELETE", "/dev", 204)
    assert here.objects.held == {}
    await made(here)
    await call(here, "POST", "/dev/archive")
    await call(here, "POST", "/dev/wake")
    await call(here, "DELETE", "/dev", 204)
    assert here.objects.held == {}


async def test_damage_is_refused_and_what_is_archived_stays_so(here: LocalPlatform) -> None:
    sandbox = await made(here)
    await call(here, "POST", "/dev/archive")
    good = dict(here.objects.held)
    for key in [key for key in good if not key.endswith("/key")]:
        here.objects.held = {**good, key: good[key][:-1]}
        answer = await call(here, "POST", "/dev/wake", 409)
        assert "refused" in answer["detail"]
        assert (await call(here, "GET", "/dev"))["phase"] == "archived"
        assert (await here.disks.contents()).disks == {}
    here.objects.held = good
    await call(here, "POST", "/dev/wake")
    assert (here.disks.path(sandbox) / "mine").read_text() == "kept"


async def test_snapshots_stay_and_what_came_after_them_comes_back(here: LocalPlatform) -> None:
    sandbox = await made(here)
    await call(here, "POST", "/dev/snapshots", 201, name="before")
    (here.disks.path(sandbox) / "mine").write_text("later")
    await call(here, "POST", "/dev/archive")
    assert len((await here.disks.contents()).generations) == 1
    await here.restart_node()
    await call(here, "POST", "/dev/wake")
    assert (here.disks.path(sandbox) / "mine").read_text() == "later"
    await call(here, "POST", "/dev/rollback", snapshot="before", keep_before=False)
    assert (here.disks.path(sandbox) / "mine").read_text() == "kept"
    await call(here, "DELETE", "/dev", 204)


@pytest.mark.parametrize("persistence", ["volume", "full"])
@pytest.mark.parametrize("verb", ["archive", "wake"])
async def test_a_kill_at_any_step_leaves_it_here_or_verified_in_the_store(
    here: LocalPlatform, monkeypatch: pytest.MonkeyPatch, verb: str, persistence: str
) -> None:
    sandbox = await made(here, persistence, "pause" if persistence == "full" else "stop")
    await call(here, "POST", "/dev/archive")
    if verb == "archive":
        await call(here, "POST", "/dev/wake")
    step, number, reached = Entry.step, 0, True
    while reached:
        number, reached, seen = number + 1, False, 0

        def killed(self: Entry, name: str, **facts: Any) -> None:
            nonlocal seen, reached
            seen += 1
            if seen == number:
                reached = True
                step(self, name, **facts)
                here._node_scope.cancel()  # type: ignore[union-attr]
                raise anyio.get_cancelled_exc_class()
            step(self, name, **facts)

        monkeypatch.setattr(Entry, "step", killed)
        with anyio.move_on_after(5):
            await here.http.post(f"/v1/sandboxes/dev/{verb}")
        monkeypatch.undo()
        await here.restart_node()
        record = here.parts.records.sandboxes[sandbox]
        contents = await here.disks.contents()
        if record.phase is Phase.ARCHIVED:
            assert contents.disks == {} and contents.generations == {}
        else:
            assert (here.disks.path(sandbox) / "mine").read_text() == "kept"
            assert (record.phase is Phase.PAUSED) == (persistence == "full")
        assert (await here.node.fsck())["findings"] == []
        with anyio.fail_after(20):
            while (await call(here, "GET", "/dev"))["phase"] not in ("archived", "stopped", "paused"):
                await anyio.sleep(0.01)
        # Whatever became of it, both ways are open.
        await call(here, "POST", "/dev/archive")
        if verb == "archive":
            await call(here, "POST", "/dev/wake")
            assert (here.disks.path(sandbox) / "mine").read_text() == "kept"
    assert number > 3
    await call(here, "DELETE", "/dev", 204)
    assert here.objects.held == {}
