"""Server and node that do not fit each other: nothing is lost, nothing that was deleted comes back, and all can be mended."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandkeep.contracts.runner import PROTOCOL_VERSION, NodeInfo
from sandkeep.control.catchup import is_updating, taken_over
from sandkeep.control.nodes import standing_of
from sandkeep.control.ticks import Tick, expired
from sandkeep.domain.capability import DiskCapabilities
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import Observed, SandboxOnNode
from sandkeep.domain.sandbox import Lifetime, Limits, Phase, RuntimeKind, Sandbox, Spec, Status
from sandkeep.engine.deletions import KEPT, Deletions
from sandkeep.testing.platform import LocalPlatform, platform
from support.clock import StillClock

pytestmark = pytest.mark.anyio
IDS = [new_id(IdKind.SANDBOX) for _ in range(3)]


# -- the memory of deletions


def test_deletions_are_remembered_for_ninety_days(tmp_path: Path) -> None:
    clock = StillClock()
    deletions = Deletions(tmp_path / "deleted.log", clock)
    deletions.open()
    deletions.add(IDS[0])
    clock.time += KEPT
    deletions.add(IDS[1])
    assert deletions.among(IDS) == {IDS[0]: 1000, IDS[1]: 1000 + KEPT}
    deletions.close()
    clock.time += 1
    again = Deletions(tmp_path / "deleted.log", clock)
    again.open()
    assert set(again.among(IDS)) == {IDS[1]}
    again.close()


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_torn_end_is_dropped_and_what_comes_after_it_counts(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "deleted.log"
    deletions = Deletions(path, StillClock())
    deletions.open()
    deletions.add(IDS[0])
    deletions.add(IDS[1])
    deletions.close()
    path.write_bytes(path.read_bytes()[:-cut])
    again = Deletions(path, StillClock())
    assert set(again.among(IDS)) == {IDS[0]}
    again.open()
    again.add(IDS[2])
    assert set(again.among(IDS)) == {IDS[0], IDS[2]}
    again.close()


# -- who belongs to whom


def node(installation: str | None) -> NodeInfo:
    return NodeInfo("node-1", PROTOCOL_VERSION, "0", 0.0, (), DiskCapabilities("fake", False, False), installation)


@pytest.mark.parametrize(
    ("theirs", "known", "unknown", "missing", "paired"),
    [
        ("ours", False, 5, 5, True),
        (None, False, 0, 0, True),  # a fresh pair, or one of a version that did not write it down
        (None, True, 5, 5, True),
        (None, False, 1, 0, False),
        (None, False, 0, 1, False),
        ("other", True, 0, 0, True),  # nothing to lose on either side
        ("other", True, 1, 0, False),
        ("other", True, 0, 1, False),
    ],
)
def test_they_are_paired_where_nothing_can_be_lost(
    theirs: str | None, known: bool, unknown: int, missing: int, paired: bool
) -> None:
    standing = standing_of("ours", node(theirs), known=known, unknown=unknown, missing=missing)
    assert standing.paired is paired
    assert bool(standing.reason) is not paired


# -- what is taken over from a node that is ahead


def row(**changes: Any) -> Sandbox:
    spec = Spec("tpl", "base", labels={"a": "old"}, lifetime=Lifetime(ttl=60))
    sandbox = Sandbox(IDS[0], "prj", "dev", spec, Status(Phase.RUNNING), 3, 100.0, 100.0, expires_at=160.0)
    return replace(sandbox, **changes)


def test_limits_labels_and_lifetime_follow_the_node_and_the_rest_stays() -> None:
    before = row(operation="opr", spec=replace(row().spec, pause_or_disk=True))
    truth = replace(before.spec, labels={"a": "new"}, limits=Limits(cpus=1), lifetime=Lifetime(), pause_or_disk=False)
    after = taken_over(before, Observed(IDS[0], 5, Phase.RUNNING), SandboxOnNode(IDS[0], "prj", truth), 500.0)
    assert (after.spec.labels, after.spec.limits.cpus, after.spec.pause_or_disk) == ({"a": "new"}, 1, True)
    assert (after.epoch, after.operation, after.expires_at, after.status) == (5, None, None, before.status)


def test_a_lifetime_that_both_know_ends_when_it_would_have() -> None:
    after = taken_over(row(), Observed(IDS[0], 5, Phase.STOPPED), SandboxOnNode(IDS[0], "prj", row().spec), 500.0)
    assert (after.expires_at, after.epoch, after.status) == (160.0, 5, row().status)


def test_a_delete_goes_on() -> None:
    before = row(status=Status(Phase.DELETING), operation="opr")
    after = taken_over(before, Observed(IDS[0], 9, Phase.RUNNING), SandboxOnNode(IDS[0], "prj", row().spec), 500.0)
    assert (after.status.phase, after.operation, after.epoch) == (Phase.DELETING, "opr", 9)


@pytest.mark.parametrize(
    ("phase", "operation", "updating"),
    [
        (Phase.RUNNING, None, False),
        (Phase.RUNNING, "opr", True),
        (Phase.PAUSING, "opr", False),
        (Phase.NEW, "opr", False),
    ],
)
def test_what_an_update_that_nobody_ended_looks_like(phase: Phase, operation: str | None, updating: bool) -> None:
    assert is_updating(row(status=Status(phase), operation=operation)) is updating


# -- the whole of it, on fakes


async def create(local: LocalPlatform, **fields: Any) -> dict[str, Any]:
    answer = await local.http.post("/v1/sandboxes", json=fields)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def until(condition: Callable[[], Any], timeout: float = 20.0) -> Any:
    with anyio.fail_after(timeout):
        while not (value := await condition()):
            await anyio.sleep(0.02)
    return value


async def shown(local: LocalPlatform, name: str) -> dict[str, Any]:
    return dict((await local.http.get(f"/v1/sandboxes/{name}")).json())


async def kinds(local: LocalPlatform, sandbox_id: str) -> list[str]:
    answer = await local.http.get(f"/v1/sandboxes/{sandbox_id}/events")
    if answer.status_code == 404:
        items = (await local.http.get("/v1/events", params={"limit": 200})).json()["items"]
        return [event["kind"] for event in items if event["subject"] == sandbox_id]
    return [event["kind"] for event in answer.json()["items"]]


async def test_an_older_copy_catches_up_and_can_be_worked_with(local: LocalPlatform) -> None:
    kept = await create(local, name="kept")
    gone = await create(local, name="gone")
    doomed = await create(local, name="doomed")
    local.copy_database("older.db")
    for name in ("kept", "doomed"):
        await local.http.patch(f"/v1/sandboxes/{name}", json={"labels": {"a": "new"}, "ttl": None})
        await local.http.post(f"/v1/sandboxes/{name}/stop")
        await local.http.post(f"/v1/sandboxes/{name}/start")
    await local.http.delete("/v1/sandboxes/gone")
    newer = await create(local, name="newer")
    async with local.server("older.db"):
        assert "apart" not in (await local.http.get("/readyz")).json()
        assert (await shown(local, "kept"))["labels"] == {"a": "new"}
        assert (await local.http.get("/v1/sandboxes/gone")).status_code == 404
        assert (await kinds(local, gone["id"]))[-1] == "sandbox.deleted"
        assert (await local.http.patch("/v1/sandboxes/kept", json={"labels": {}})).status_code == 200
        assert (await local.http.delete("/v1/sandboxes/doomed")).status_code == 204
        (candidate,) = (await local.http.get("/v1/node/adoption")).json()["items"]
        assert (candidate["id"], candidate["name"]) == (newer["id"], "newer")
        assert len(local.kernels[RuntimeKind.GVISOR].machines) == 2
        await local.http.post("/v1/node/adoption", json={"ids": [newer["id"]]})
        adopted = await shown(local, "newer")
        assert (adopted["phase"], adopted["created_at"]) == ("running", newer["created_at"])
        assert (await local.http.post("/v1/sandboxes/newer/stop")).json()["phase"] == "stopped"
    assert {kept["id"], newer["id"]} == set((await local.disks.contents()).disks)
    assert doomed["id"] not in (await local.disks.contents()).disks


async def test_a_delete_that_the_copy_asks_for_before_it_caught_up_is_done(local: LocalPlatform) -> None:
    sandbox = await create(local, name="one")
    stored = await local.services.sandboxes.by_id(sandbox["id"])
    assert stored is not None
    await local.http.post("/v1/sandboxes/one/stop")
    await local.http.post("/v1/sandboxes/one/start")
    old = replace(stored, operation=new_id(IdKind.OPERATION), status=Status(Phase.DELETING))
    await local.services.sandboxes.finish_delete(old)
    assert (await local.disks.contents()).disks == {}


async def test_an_empty_database_leaves_all_alone_until_it_is_told(local: LocalPlatform) -> None:
    running = await create(local, name="running", labels={"a": "b"}, env={"K": "V"})
    paused = await create(local, name="paused", persistence="full")
    await local.http.post("/v1/sandboxes/paused/pause")
    brief = await create(local, name="brief", persistence="ephemeral", ttl="100s")
    await create(local, name="deleted")
    await local.http.delete("/v1/sandboxes/deleted")
    local.clock.advance(90)
    async with local.server("empty.db"):
        assert "unknown to the database" in (await local.http.get("/readyz")).json()["apart"]
        view = (await local.http.get("/v1/node")).json()
        assert (view["paired"], view["unknown"], view["quarantined"]) == (False, 3, 0)
        fresh = await create(local, name="running")  # one can go on working, and the name is taken
        plan = {item["id"]: item for item in (await local.http.get("/v1/node/adoption")).json()["items"]}
        assert set(plan) == {running["id"], paused["id"], brief["id"]}
        assert plan[running["id"]]["name"] is None
        assert "the name running is taken" in plan[running["id"]]["notes"][0]
        assert (await local.http.get("/v1/sandboxes")).json()["items"][0]["id"] == fresh["id"]
        body = {"ids": None, "names": {running["id"]: "running2"}}
        adopted = (await local.http.post("/v1/node/adoption", json=body)).json()["items"]
        assert {item["id"] for item in adopted} == set(plan)
        found = await shown(local, "running2")
        assert (found["id"], found["phase"], found["labels"], found["env"]) == (
            running["id"], "running", {"a": "b"}, {"K": "V"},
        )  # fmt: skip
        assert "sandbox.adopted" in await kinds(local, running["id"])
        resumed = await local.http.post("/v1/sandboxes/paused/resume")
        assert (resumed.status_code, resumed.json()["phase"]) == (200, "running")

        async def paired() -> bool:
            return "apart" not in (await local.http.get("/readyz")).json()

        await until(paired)
        assert (await local.http.get("/v1/sandboxes/deleted")).status_code == 404

        local.clock.advance(50)
        await local.services.reconciler.compare(first=True)
        assert (await shown(local, "brief"))["phase"] == "running"
        local.clock.advance(50)

        async def brief_ended() -> bool:  # its rule holds again, and its time counted from the adoption
            return (await local.http.get("/v1/sandboxes/brief")).status_code == 404

        await until(brief_ended)
    assert (await local.node.handshake()).installation != local.services.nodes.installation


async def test_snapshots_that_the_copy_does_not_know_are_taken_over(local: LocalPlatform) -> None:
    await create(local, name="one")
    local.copy_database("copy.db")
    url = "/v1/sandboxes/one/snapshots"
    first = (await local.http.post(url, json={"name": "first", "tags": ["good"]})).json()
    second = (await local.http.post(url, json={})).json()
    async with local.server("copy.db"):

        async def known() -> bool:
            return len((await local.http.get(url)).json()["items"]) == 2

        await until(known)
        assert (await local.http.get(f"{url}/first")).json() == first
        assert (await local.http.get(f"{url}/{second['id']}")).json()["parent"] == first["id"]
        assert (await local.http.delete(f"{url}/first")).status_code == 204
        assert (await local.http.post("/v1/sandboxes/one/rollback", json={"snapshot": second["id"]})).status_code == 200
    assert (await local.node.fsck())["findings"] == []


async def test_the_wrong_database_changes_nothing_on_either_side(local: LocalPlatform, tmp_path: Path) -> None:
    mine = await create(local, name="mine")
    async with platform(tmp_path / "other") as other:
        theirs = await create(other, name="theirs", ttl="100s", on_expiry="delete")
        other.copy_database("copy.db")
        shutil.copy(other.folder / "copy.db", local.folder / "wrong.db")
    async with local.server("wrong.db"):
        await local.services.reconciler.compare(first=True)
        local.clock.advance(200)
        late = await expired(local.services.events, Tick(local.clock.now()))
        assert late
        async with anyio.create_task_group() as tasks:
            local.services.reconciler._expiries.begin(tasks, late)
        assert "are not on it" in (await local.http.get("/readyz")).json()["apart"]
        found = await shown(local, "theirs")
        assert (found["id"], found["phase"]) == (theirs["id"], "running")
        assert mine["id"] in (await local.disks.contents()).disks
        assert len(local.kernels[RuntimeKind.GVISOR].machines) == 1
    assert (await shown(local, "mine"))["phase"] == "running"
    assert (await local.http.delete("/v1/sandboxes/mine")).status_code == 204


async def test_an_update_that_a_crash_interrupted_follows_the_node(local: LocalPlatform) -> None:
    sandbox = await create(local, name="one", labels={"a": "old"})
    before = await local.services.sandboxes.by_id(sandbox["id"])
    assert before is not None
    await local.http.patch("/v1/sandboxes/one", json={"labels": {"a": "new"}, "memory": "2GiB"})
    await local.write_row(replace(before, epoch=2, operation=new_id(IdKind.OPERATION)))
    await local.services.reconciler.compare(first=True)
    found = await shown(local, "one")
    assert (found["labels"], found["memory"]) == ({"a": "new"}, 2 << 30)
    after = await local.services.sandboxes.by_id(sandbox["id"])
    assert after is not None
    assert after.operation is None


async def lose_record(local: LocalPlatform, sandbox_id: str, content: str | None) -> None:
    await local.kill_node()
    path = local.folder / "node" / "sandboxes" / f"{sandbox_id}.json"
    path.unlink() if content is None else path.write_text(content)
    await local.start_node()


@pytest.mark.parametrize("content", [None, "{", "[]", '{"sandbox": 1}'])
async def test_a_lost_record_leaves_a_disk_that_can_be_restored(local: LocalPlatform, content: str | None) -> None:
    sandbox = await create(local, name="one", disk="1GiB", env={"K": "V"})
    await lose_record(local, sandbox["id"], content)
    assert local.kernels[RuntimeKind.GVISOR].machines == {}
    (found,) = (await local.http.get("/v1/node/quarantine")).json()["items"]
    assert (found["id"], found["what"], found["template"]) == (sandbox["id"], "disk", sandbox["template_id"])
    assert (found["limit"], found["size"] > 0) == (1 << 30, True)

    async def failed() -> bool:
        return (await shown(local, "one"))["phase"] == "failed"

    await until(failed)
    answer = await local.http.post(f"/v1/node/quarantine/{sandbox['id']}/restore", json={})
    assert (answer.status_code, answer.json()["phase"]) == (200, "stopped"), answer.text
    assert (await local.http.post("/v1/sandboxes/one/start")).json()["phase"] == "running"
    assert (await shown(local, "one"))["env"] == {"K": "V"}
    assert (await local.node.fsck())["findings"] == []
    await local.restart_node()
    assert (await local.node.fsck())["findings"] == []


async def test_a_disk_that_nobody_knows_becomes_a_volume_under_a_name(local: LocalPlatform) -> None:
    sandbox = await create(local, name="one", disk="1GiB")
    await lose_record(local, sandbox["id"], None)
    async with local.server("empty.db"):
        url = f"/v1/node/quarantine/{sandbox['id']}/restore"
        back = (await local.http.post(url, json={"name": "back", "runtime": "runc"})).json()
        assert (back["id"], back["phase"], back["persistence"]) == (sandbox["id"], "stopped", "volume")
        assert (back["template"], back["disk"]) == ("base", 1 << 30)
        assert (await local.http.post("/v1/sandboxes/back/start")).json()["phase"] == "running"


async def test_only_a_delete_removes_what_is_in_quarantine(local: LocalPlatform) -> None:
    sandbox = await create(local, name="one")
    await lose_record(local, sandbox["id"], "{")
    aside = local.folder / "node" / "unreadable" / f"{sandbox['id']}.json"
    assert aside.read_text() == "{"
    await local.restart_node()
    assert sandbox["id"] in (await local.disks.contents()).disks
    assert (await local.http.delete(f"/v1/node/quarantine/{new_id(IdKind.SANDBOX)}")).status_code == 404
    assert (await local.http.delete(f"/v1/node/quarantine/{sandbox['id']}")).status_code == 204
    assert (await local.disks.contents()).disks == {}
    assert not aside.exists()
    assert (await local.node.fsck())["findings"] == []

    async def forgotten() -> bool:
        await local.services.reconciler.compare(first=False)
        return (await local.http.get("/v1/sandboxes/one")).status_code == 404

    await until(forgotten)


async def test_a_sandbox_in_quarantine_is_deleted_as_any_other(local: LocalPlatform) -> None:
    sandbox = await create(local, name="one")
    await lose_record(local, sandbox["id"], None)
    assert (await local.http.delete("/v1/sandboxes/one")).status_code == 204
    assert (await local.disks.contents()).disks == {}
    assert sandbox["id"] in local.parts.deletions.among([sandbox["id"]])


async def test_what_has_a_record_is_not_in_quarantine(local: LocalPlatform) -> None:
    sandbox = await create(local, name="one")
    assert (await local.http.get("/v1/node/quarantine")).json()["items"] == []
    assert (await local.http.delete(f"/v1/node/quarantine/{sandbox['id']}")).status_code == 409
    assert (await shown(local, "one"))["phase"] == "running"


async def test_a_record_from_a_backup_does_not_bring_back_what_was_deleted(local: LocalPlatform) -> None:
    sandbox = await create(local, name="one")
    path = local.folder / "node" / "sandboxes" / f"{sandbox['id']}.json"
    saved = path.read_text()
    assert (await local.http.delete("/v1/sandboxes/one")).status_code == 204
    await local.kill_node()
    path.write_text(saved)
    await local.start_node()

    async def erased() -> bool:
        return not path.exists()

    await until(erased)
    assert (await local.http.get("/v1/node/adoption")).json()["items"] == []


async def test_a_record_of_an_older_version_still_loads(local: LocalPlatform) -> None:
    sandbox = await create(local, name="one")
    await local.kill_node()
    path = local.folder / "node" / "sandboxes" / f"{sandbox['id']}.json"
    data = json.loads(path.read_text())
    del data["sandbox"]["created_at"], data["checksum"]
    path.write_text(json.dumps(data))
    await local.start_node()
    assert (await shown(local, "one"))["phase"] == "running"
    assert len(local.kernels[RuntimeKind.GVISOR].machines) == 1


async def test_repair_while_it_serves_ends_strangers_and_nothing_else(local: LocalPlatform) -> None:
    await create(local, name="one")
    (plan,) = [machine.plan for machine in local.kernels[RuntimeKind.GVISOR].machines.values()]
    stranger = plan.id.replace(plan.sandbox_id.partition("_")[2], new_id(IdKind.SANDBOX).partition("_")[2])
    await local.runtimes[RuntimeKind.GVISOR].boot(replace(plan, id=stranger))
    assert {f["kind"] for f in (await local.node.fsck())["findings"]} == {"machine.unowned"}
    await local.node.repair()
    assert (await local.node.fsck())["findings"] == []
    assert list(local.kernels[RuntimeKind.GVISOR].machines) == [plan.id]
