"""Timelines at work: what is made when, and what goes, on the fakes and with a clock that the test turns."""

import itertools
from typing import Any

import anyio
import pytest

from sandkeep.domain.errors import Internal
from sandkeep.domain.sandbox import RuntimeKind
from sandkeep.testing.platform import LocalPlatform

pytestmark = pytest.mark.anyio

HOUR, DAY = 3600.0, 86400.0
_numbers = itertools.count()


async def make(local: LocalPlatform, timeline: dict[str, Any] | None = None, **fields: Any) -> str:
    answer = await local.http.post("/v1/sandboxes", json=fields)
    assert answer.status_code == 201, answer.text
    sandbox = str(answer.json()["id"])
    await rules(local, sandbox, **(timeline or {}))
    return sandbox


async def rules(local: LocalPlatform, sandbox: str, status: int = 200, **timeline: Any) -> dict[str, Any]:
    answer = await local.http.put(f"/v1/sandboxes/{sandbox}/timeline", json={"min_age": 0, **timeline})
    assert answer.status_code == status, answer.text
    return dict(answer.json())


async def post(local: LocalPlatform, sandbox: str, verb: str, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = await local.http.post(f"/v1/sandboxes/{sandbox}/{verb}", json=body or None)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


async def snapshots(local: LocalPlatform, sandbox: str) -> list[dict[str, Any]]:
    return list((await local.http.get(f"/v1/sandboxes/{sandbox}/snapshots")).json()["items"])


async def causes(local: LocalPlatform, sandbox: str) -> list[str]:
    return [one["cause"] for one in await snapshots(local, sandbox)]


async def have(local: LocalPlatform, sandbox: str, *expected: str) -> None:
    """Until its snapshots were made for these."""
    with anyio.fail_after(15):
        while await causes(local, sandbox) != list(expected):
            await anyio.sleep(0.01)


async def events(local: LocalPlatform, sandbox: str) -> list[str]:
    items = (await local.http.get(f"/v1/sandboxes/{sandbox}/events", params={"limit": 200})).json()["items"]
    return [event["kind"] for event in items]


def write(local: LocalPlatform, sandbox: str, size: int = 10) -> None:
    number = next(_numbers)
    (local.disks.path(sandbox) / f"file-{number}").write_bytes(f"{number:0{size}d}".encode())


async def later(local: LocalPlatform, seconds: float, looks: int = 2) -> None:
    """So much time passes, and what is due by then is done."""
    schedule = local.services.reconciler._schedule
    look, looked = schedule._look, anyio.Event()

    async def counting(tasks: Any) -> None:
        await look(tasks)
        looked.set()

    schedule._look = counting  # type: ignore[method-assign]
    try:
        local.clock.advance(seconds)
        for _ in range(looks):
            with anyio.fail_after(15):
                await looked.wait()
                while schedule._under_way:
                    await anyio.sleep(0.005)
            looked = anyio.Event()
            local.clock.advance(1.0)
    finally:
        schedule._look = look  # type: ignore[method-assign]


async def test_a_create_sets_it_and_a_name_finds_it(local: LocalPlatform) -> None:
    async def create(status: int, **timeline: Any) -> dict[str, Any]:
        answer = await local.http.post("/v1/sandboxes", json={"name": "dev", **timeline})
        assert answer.status_code == status, answer.text
        return dict(answer.json())

    asked = {"every": "1h", "keep_last": 3}
    await create(400, timeline={"every": 1})
    made = await create(201, timeline=asked)
    assert (made["timeline"]["every"], made["timeline"]["keep_last"]) == (HOUR, 3)
    assert (await create(200, timeline=asked))["id"] == (await create(200))["id"] == made["id"]
    assert (await create(409, timeline={"every": "2h"}))["fields"] == ["timeline"]
    write(local, made["id"])
    await later(local, HOUR)
    await have(local, made["id"], "schedule")
    (fork,) = (await post(local, made["id"], "fork", 201))["items"]
    assert fork["timeline"] == made["timeline"]
    await rules(local, made["id"], min_age="1h")
    assert (await local.http.get("/v1/sandboxes/dev")).json()["timeline"] is None


async def test_on_schedule_and_only_what_changed(local: LocalPlatform) -> None:
    sandbox = await make(local, {"every": "1h"})
    await later(local, HOUR - 60)
    assert await causes(local, sandbox) == []
    await later(local, 120)
    assert await causes(local, sandbox) == ["schedule"], "a disk that no snapshot has yet has changed"
    for _ in range(3):
        await later(local, HOUR)
    assert await causes(local, sandbox) == ["schedule"]
    assert sum(call[0] == "changed" for call in local.disks.calls) == 3, "it was looked at each hour"
    write(local, sandbox)
    await later(local, HOUR)
    made = await snapshots(local, sandbox)
    assert [one["reason"] for one in made] == ["on schedule"] * 2
    assert made[1]["parent"] == made[0]["id"]
    await post(local, sandbox, "stop")
    await later(local, 5 * HOUR)
    write(local, sandbox)
    await later(local, HOUR)
    assert len(await snapshots(local, sandbox)) == 3, "also of a stopped one"


async def test_the_time_counts_from_the_newest_one(local: LocalPlatform) -> None:
    sandbox = await make(local, {"every": "1h"})
    await later(local, 50 * 60)
    await post(local, sandbox, "snapshots", 201)
    write(local, sandbox)
    await later(local, 30 * 60)
    assert await causes(local, sandbox) == ["asked"]
    await later(local, 31 * 60)
    assert await causes(local, sandbox) == ["asked", "schedule"]


async def test_a_restart_neither_forgets_nor_doubles(local: LocalPlatform) -> None:
    sandbox = await make(local, {"every": "1h"})
    await later(local, HOUR)
    for missed in (0.5, 1, 10, 1000):
        write(local, sandbox)
        await local.stop_server()
        local.clock.advance(missed * HOUR)
        await local.start_server()
        before = len(await snapshots(local, sandbox))
        await later(local, 0)
        write(local, sandbox)
        await later(local, 0)
        assert len(await snapshots(local, sandbox)) == before + (missed >= 1), missed
        await later(local, HOUR)
        assert len(await snapshots(local, sandbox)) == before + (missed >= 1) + 1, missed


async def test_a_wall_clock_that_is_set(local: LocalPlatform) -> None:
    sandbox = await make(local, {"every": "1h"})
    await later(local, HOUR)
    for jump in (DAY, -2 * DAY, 400 * DAY, -401 * DAY):
        write(local, sandbox)
        before = len(await snapshots(local, sandbox))
        local.clock.jump(jump)
        await later(local, 60)
        assert len(await snapshots(local, sandbox)) == before, "it did not become later"
        await later(local, HOUR)
        assert len(await snapshots(local, sandbox)) == before + 1, "nor does it ever take longer"
    for jump in (DAY, -2 * DAY):
        write(local, sandbox)
        before = len(await snapshots(local, sandbox))
        await local.stop_server()
        local.clock.jump(jump)
        await local.start_server()
        await later(local, 60)
        assert len(await snapshots(local, sandbox)) <= before + 1
        await later(local, HOUR)
        assert before + 1 <= len(await snapshots(local, sandbox)) <= before + 2


async def test_a_full_pool_is_tried_ever_more_rarely(local: LocalPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = await make(local, {"every": "1h"})

    async def refused(sandbox_id: str, generation_id: str) -> None:
        tries.append(local.clock.monotonic())
        raise Internal("the pool takes nothing")

    tries: list[float] = []
    with monkeypatch.context() as patched:
        patched.setattr(local.disks, "snapshot", refused)
        await later(local, HOUR)
        for _ in range(40):
            await later(local, 60, looks=1)
    assert 5 <= len(tries) <= 12, "an hour, in which it was tried ever more rarely"
    assert await snapshots(local, sandbox) == []
    assert (await events(local, sandbox)).count("snapshot.failed") == len(tries)
    assert (await local.disks.contents()).generations == {}
    await later(local, 2 * HOUR)
    assert await causes(local, sandbox) == ["schedule"]


async def test_one_that_is_deleted_meanwhile(local: LocalPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = await make(local, {"every": "1h", "keep_last": 1})
    other = await make(local, {"every": "1h"})
    snapshot, begun = local.disks.snapshot, anyio.Event()

    async def slow(sandbox_id: str, generation_id: str) -> None:
        if sandbox_id == sandbox:
            begun.set()
            await anyio.sleep_forever()
        await snapshot(sandbox_id, generation_id)

    monkeypatch.setattr(local.disks, "snapshot", slow)
    local.clock.advance(HOUR)
    with anyio.fail_after(15):
        await begun.wait()
    await have(local, other, "schedule")
    assert (await local.http.delete(f"/v1/sandboxes/{sandbox}")).status_code == 204
    await later(local, HOUR)
    assert (await local.disks.contents()).disks == {other: other}
    assert (await local.node.fsck())["findings"] == []


@pytest.mark.parametrize("how", ["stop", "crash", "out of memory"])
async def test_at_the_end_of_a_machine(local: LocalPlatform, how: str) -> None:
    ends = {"on_exit": how == "stop", "on_crash": how == "crash", "on_out_of_memory": how == "out of memory"}
    sandbox = await make(local, ends, on_failure="restart")
    quiet = await make(local, {name: not on for name, on in ends.items()}, on_failure="stop")
    machine = {plan.plan.sandbox_id: plan.plan.id for plan in local.kernels[RuntimeKind.GVISOR].machines.values()}
    for one in (sandbox, quiet):
        write(local, one)
        if how == "stop":
            await post(local, one, "stop")
        else:
            local.runtimes[RuntimeKind.GVISOR].die(machine[one], oom=how == "out of memory")
    await have(local, sandbox, {"stop": "exit", "crash": "crash", "out of memory": "out_of_memory"}[how])
    assert await causes(local, quiet) == []
    assert "snapshot.created" in await events(local, sandbox)
    await later(local, 60)
    shown = (await local.http.get(f"/v1/sandboxes/{sandbox}")).json()
    assert shown["phase"] == ("stopped" if how == "stop" else "running")
    assert len(await snapshots(local, sandbox)) == 1


async def test_an_end_without_a_change_is_no_moment(local: LocalPlatform) -> None:
    sandbox = await make(local, {"on_exit": True})
    for _ in range(3):
        await post(local, sandbox, "stop")
        await post(local, sandbox, "start")
    await have(local, sandbox, "exit")
    write(local, sandbox)
    await post(local, sandbox, "stop")
    await have(local, sandbox, "exit", "exit")


async def test_crashes_in_a_row_are_one_moment(local: LocalPlatform) -> None:
    sandbox = await make(local, {"on_crash": True}, on_failure="stop")
    for _ in range(3):
        write(local, sandbox)
        (machine,) = local.kernels[RuntimeKind.GVISOR].machines
        local.runtimes[RuntimeKind.GVISOR].die(machine)
        with anyio.fail_after(15):
            while (await local.http.get(f"/v1/sandboxes/{sandbox}")).json()["phase"] != "stopped":
                await anyio.sleep(0.01)
        await post(local, sandbox, "start")
    assert len((await local.disks.contents()).generations) == 1


async def test_a_stop_is_one_also_when_nothing_can_be_kept(
    local: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = await make(local, {"on_exit": True})

    async def refused(sandbox_id: str, generation_id: str) -> None:
        raise Internal("the pool takes nothing")

    with monkeypatch.context() as patched:
        patched.setattr(local.disks, "snapshot", refused)
        assert (await post(local, sandbox, "stop"))["phase"] == "stopped"
    assert (await local.disks.contents()).generations == {}
    assert (await post(local, sandbox, "start"))["phase"] == "running"
    assert (await local.node.fsck())["findings"] == []


async def test_a_machine_that_went_with_its_host(local: LocalPlatform) -> None:
    sandbox = await make(local, {"on_crash": True}, on_failure="stop")
    await local.kill_node()
    local.kernels[RuntimeKind.GVISOR].machines.clear()
    await local.start_node()
    await have(local, sandbox, "crash")


async def test_what_goes_goes_by_itself(local: LocalPlatform) -> None:
    sandbox = await make(local, {"every": "1h", "keep_last": 2, "keep_tags": ["release"]})
    await post(local, sandbox, "snapshots", 201)
    await post(local, sandbox, "snapshots", 201, name="clean")
    for _ in range(5):
        write(local, sandbox)
        await later(local, HOUR)
    assert await causes(local, sandbox) == ["asked", "asked", "schedule", "schedule"]
    assert (await events(local, sandbox)).count("snapshot.pruned") == 3
    assert len((await local.disks.contents()).generations) == 4
    await rules(local, sandbox, every="1h", keep_last=1, asked_too=True)
    await later(local, 1)
    assert [one["name"] for one in await snapshots(local, sandbox)] == ["clean", None]
    await rules(local, sandbox)
    for _ in range(3):
        write(local, sandbox)
        await later(local, HOUR)
    assert len(await snapshots(local, sandbox)) == 2, "off: nothing is made, and nothing goes"


async def test_before_something_risky(local: LocalPlatform) -> None:
    sandbox = await make(local, {"keep_last": 2})
    await post(local, sandbox, "snapshots", 201, name="clean")
    await post(local, sandbox, "exec", command="echo on", snapshot_first=True)
    await post(local, sandbox, "rollback", snapshot="clean")
    await post(local, sandbox, "fork", 201)
    await post(local, sandbox, "snapshots", 201, cause="exec")
    await later(local, 1)
    found = await snapshots(local, sandbox)
    assert [one["cause"] for one in found] == ["asked", "fork", "exec"]
    assert {one["reason"] for one in found} == {"asked for", "for a fork", "before a command"}
    local.disks.full = True
    asked = {"command": "what the guest would refuse", "snapshot_first": True}
    assert (await post(local, sandbox, "exec", 507, **asked))["code"] == "no_capacity", "nothing ran"


async def test_a_budget(local: LocalPlatform) -> None:
    sandbox = await make(local, {"every": "1h"})
    for size in (4000, 3000, 2000, 1000):
        write(local, sandbox, size)
        await later(local, HOUR)
        for path in local.disks.path(sandbox).glob("file-*"):
            path.unlink()
    await rules(local, sandbox, budget=6500)
    planned = await post(local, sandbox, "timeline/prune", plan=True)
    assert (planned["done"], planned["total"], planned["budget"]) == (False, 10000, 6500)
    assert [(one["why"], one["snapshot"]["freed"], one["snapshot"]["written"]) for one in planned["items"]] == [
        ("over the budget", 4000, 4000),
        ("", 3000, 3000),
        ("", 2000, 2000),
        ("", 1000, 1000),
    ]
    done = await post(local, sandbox, "timeline/prune")
    assert done["done"]
    listed = await snapshots(local, sandbox)
    assert [one["id"] for one in listed] == [one["snapshot"]["id"] for one in planned["items"][1:]]
    assert (await post(local, sandbox, "timeline/prune"))["total"] == 6000
    assert listed[0]["parent"] is None


async def test_sizes_come_by_themselves(local: LocalPlatform) -> None:
    sandbox = await make(local)
    write(local, sandbox, 500)
    made = await post(local, sandbox, "snapshots", 201)
    assert (made["written"], made["freed"]) == (None, None)
    local.clock.advance(5)
    with anyio.fail_after(15):
        while (listed := await snapshots(local, sandbox))[0]["measured_at"] is None:
            await anyio.sleep(0.01)
    assert (listed[0]["written"], listed[0]["freed"]) == (500, 0)
    local.runner.node = None
    assert [one["freed"] for one in await snapshots(local, sandbox)] == [None], "without a node nobody knows"


async def test_it_goes_with_the_sandbox(local: LocalPlatform) -> None:
    timeline = {"every": "1h", "keep_hourly": 24, "keep_tags": ["a"], "min_age": "10m", "budget": "5G", "on_exit": True}
    sandbox = await make(local, timeline)
    shown = (await local.http.get(f"/v1/sandboxes/{sandbox}/timeline")).json()
    assert (shown["every"], shown["budget"], shown["min_age"], shown["keep_tags"]) == (HOUR, 5 << 30, 600, ["a"])
    assert shown["next_at"] is not None
    for refused in ({"every": 1}, {"keep_last": -1}, {"budget": 0}, {"kind": "full!"}, {"colour": "green"}):
        await rules(local, sandbox, 400, **refused)
    (fork,) = (await post(local, sandbox, "fork", 201))["items"]
    kept = await local.node.export_record(sandbox)
    assert kept is not None
    await local.restart_node()
    for one in (sandbox, fork["id"]):
        found = (await local.http.get(f"/v1/sandboxes/{one}/timeline")).json()
        assert {**found, "sandbox_id": "", "next_at": ""} == {**shown, "sandbox_id": "", "next_at": ""}
        again = await local.node.export_record(one)
        assert again is not None
        assert again.spec.timeline == kept.spec.timeline


async def test_a_database_from_before_learns_of_it(local: LocalPlatform) -> None:
    sandbox = await make(local)
    local.copy_database("before.db")
    await rules(local, sandbox, every="2h")
    async with local.server("before.db"):
        with anyio.fail_after(15):
            while (await local.http.get(f"/v1/sandboxes/{sandbox}/timeline")).json()["every"] != 2 * HOUR:
                await anyio.sleep(0.02)


async def test_with_memory_where_there_is_some(local: LocalPlatform) -> None:
    sandbox = await make(local, {"every": "1h", "kind": "full"}, persistence="full")
    other = await make(local, {"every": "1h", "kind": "full"}, runtime="runc")
    await later(local, HOUR)
    await later(local, HOUR)
    for _ in range(2):
        await post(local, sandbox, "stop")
        write(local, sandbox)
        await later(local, HOUR)
    found = await snapshots(local, sandbox)
    assert [(one["kind"], one["cause"]) for one in found] == [
        ("full", "schedule"),
        ("full", "schedule"),
        ("disk", "schedule"),
        ("disk", "schedule"),
    ], "what runs has always changed; what is stopped has a disk alone"
    assert [one["kind"] for one in await snapshots(local, other)] == ["disk"]


async def test_what_a_pause_shares_is_nobodys_to_give_back(local: LocalPlatform) -> None:
    sandbox = await make(local, persistence="full")
    write(local, sandbox, 700)
    await post(local, sandbox, "snapshots", 201, kind="full", name="running")
    await post(local, sandbox, "pause")
    await post(local, sandbox, "snapshots", 201, kind="full", name="paused")
    write(local, sandbox, 300)
    first, second = (await post(local, sandbox, "timeline/prune", plan=True))["items"]
    assert (first["snapshot"]["freed"], second["snapshot"]["freed"]) == (None, None)
    await rules(local, sandbox, budget="1G")
    planned = await post(local, sandbox, "timeline/prune", plan=True)
    first, second = planned["items"]
    memory = first["snapshot"]["written"] - 700
    assert memory > 0
    assert first["snapshot"]["freed"] == memory, "its files are those of the disk, too"
    assert (second["snapshot"]["written"], second["snapshot"]["freed"]) == (None, 0)
    assert planned["total"] == memory


async def test_one_that_is_turned_off_while_it_waits(local: LocalPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [await make(local, {"every": "1h"}) for _ in range(3)]
    snapshot, free = local.disks.snapshot, anyio.Event()
    begun: list[str] = []

    async def slow(sandbox_id: str, generation_id: str) -> None:
        begun.append(sandbox_id)
        await free.wait()
        await snapshot(sandbox_id, generation_id)

    with monkeypatch.context() as patched:
        patched.setattr(local.disks, "snapshot", slow)
        local.clock.advance(HOUR + 1)
        schedule = local.services.reconciler._schedule
        with anyio.fail_after(15):
            while len(begun) < 2 or len(schedule._under_way) < 3:
                await anyio.sleep(0.01)
            (waiting,) = set(made) - set(begun)
            answer = await local.http.put(f"/v1/sandboxes/{waiting}/timeline", json={})
            assert answer.status_code == 200
            while waiting in schedule._timers:
                local.clock.advance(1)
                await anyio.sleep(0.01)
        free.set()
    for one in begun:
        await have(local, one, "schedule")
    assert await snapshots(local, waiting) == []
    write(local, begun[0])
    await later(local, HOUR)
    assert await causes(local, begun[0]) == ["schedule", "schedule"]
