"""A machine that ends by itself: what follows by its owner's rule, on the fakes and with a clock that the test turns."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from sandkeep.domain.errors import Internal
from sandkeep.domain.restart import LONGEST_WAIT, LOOP, Restarts, wait_before
from sandkeep.domain.sandbox import RuntimeKind
from sandkeep.testing.platform import LocalPlatform

pytestmark = pytest.mark.anyio


async def create(local: LocalPlatform, **fields: Any) -> str:
    answer = await local.http.post("/v1/sandboxes", json=fields)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def show(local: LocalPlatform, sandbox: str) -> dict[str, Any]:
    return dict((await local.http.get(f"/v1/sandboxes/{sandbox}")).json())


async def call(local: LocalPlatform, sandbox: str, verb: str, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = await local.http.post(f"/v1/sandboxes/{sandbox}/{verb}", json=body or None)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


async def becomes(
    local: LocalPlatform, sandbox: str, true: Callable[[dict[str, Any]], bool], *, step: float = 0.0
) -> dict[str, Any]:
    """Its first view of which that is true; `step`: so many seconds pass at each look."""
    with anyio.fail_after(15):
        while not true(shown := await show(local, sandbox)):
            if step:
                local.clock.advance(step)
            await anyio.sleep(0.01)
    return shown


async def events(local: LocalPlatform, sandbox: str) -> list[str]:
    items = (await local.http.get(f"/v1/sandboxes/{sandbox}/events", params={"limit": 200})).json()["items"]
    return [event["kind"] for event in items]


def conditions(shown: dict[str, Any]) -> dict[str, str]:
    """Those that are true."""
    return {one["kind"]: one["reason"] for one in shown["conditions"] if one["value"]}


def die(local: LocalPlatform, **how: Any) -> None:
    (machine,) = local.kernels[RuntimeKind.GVISOR].machines
    local.runtimes[RuntimeKind.GVISOR].die(machine, **how)


def planned(shown: dict[str, Any]) -> bool:
    return shown["phase"] == "stopped" and shown["restart_at"] is not None


def running(shown: dict[str, Any]) -> bool:
    return bool(shown["phase"] == "running")


async def fail(local: LocalPlatform, sandbox: str, times: int) -> dict[str, Any]:
    """It dies and is started again, so many times; then it has died once more, and waits."""
    for _ in range(times):
        die(local)
        await becomes(local, sandbox, planned)
        await becomes(local, sandbox, running, step=LONGEST_WAIT)
    die(local)
    return await becomes(local, sandbox, planned)


def test_waits_grow_and_have_an_end() -> None:
    assert [wait_before(n) for n in range(1, 11)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert wait_before(10**6) == LONGEST_WAIT


@pytest.mark.parametrize(("now", "wait"), [(100, 8), (104, 4), (108, 0), (100 + 86400, 0), (100 - 86400, 8)])
def test_no_clock_makes_a_wait_longer_than_the_rule_s(now: float, wait: float) -> None:
    assert Restarts(failures=4, next_at=108.0).wait(now) == wait


@pytest.mark.parametrize("persistence", ["volume", "full"])
async def test_it_comes_back_from_its_disk(local: LocalPlatform, persistence: str) -> None:
    sandbox = await create(local, persistence=persistence)
    die(local, oom=True)
    shown = await becomes(local, sandbox, planned)
    assert (shown["failures"], shown["on_failure"]) == (1, "restart")
    assert "disk was kept" in shown["reason"]
    shown = await becomes(local, sandbox, running, step=1)
    assert (shown["failures"], shown["restart_at"]) == (1, None)
    assert ("MemoryLost" in conditions(shown)) == (persistence == "full")
    lost = ["sandbox.memory_lost"] if persistence == "full" else []
    told = [kind for kind in await events(local, sandbox) if kind not in ("sandbox.created", "sandbox.started")]
    assert told == ["sandbox.out_of_memory", *lost, "sandbox.starting", "sandbox.restarted"]
    await becomes(local, sandbox, lambda shown: shown["failures"] == 0, step=60)
    if persistence == "full":
        await call(local, sandbox, "pause")
        assert "MemoryLost" not in conditions(await show(local, sandbox))


async def test_five_ends_in_a_row_are_a_crash_loop(local: LocalPlatform) -> None:
    sandbox = await create(local)
    shown = await fail(local, sandbox, LOOP - 2)
    assert "CrashLoop" not in conditions(shown)
    await becomes(local, sandbox, running, step=LONGEST_WAIT)
    die(local)
    shown = await becomes(local, sandbox, planned)
    assert f"failed {LOOP} times in a row; the next try is at" in conditions(shown)["CrashLoop"]
    await becomes(local, sandbox, running, step=LONGEST_WAIT)
    die(local)
    shown = await becomes(local, sandbox, planned)
    assert f"failed {LOOP + 1} times" in conditions(shown)["CrashLoop"]
    assert (await events(local, sandbox)).count("sandbox.crash_loop") == 1
    shown = await becomes(local, sandbox, running, step=LONGEST_WAIT)
    assert "it runs now" in conditions(shown)["CrashLoop"]
    shown = await becomes(local, sandbox, lambda shown: shown["failures"] == 0, step=60)
    assert "CrashLoop" not in conditions(shown)


@pytest.mark.parametrize("verb", ["start", "stop", "pause", "update", "expiry", "delete"])
async def test_its_owner_calls_a_planned_restart_off(local: LocalPlatform, verb: str) -> None:
    sandbox = await create(local)
    shown = await fail(local, sandbox, LOOP)
    assert "CrashLoop" in conditions(shown)
    url = f"/v1/sandboxes/{sandbox}"
    if verb == "update":
        assert (await local.http.patch(url, json={"on_failure": "stop"})).status_code == 200
    elif verb == "expiry":
        assert (await local.http.patch(url, json={"ttl": 1})).status_code == 200
        await becomes(local, sandbox, lambda shown: shown["expires_at"] is None, step=0.5)
    elif verb == "delete":
        assert (await local.http.delete(url)).status_code == 204
        local.clock.advance(LONGEST_WAIT)
        assert (await local.http.get(url)).status_code == 404
        assert local.kernels[RuntimeKind.GVISOR].machines == {}
        return
    else:
        await call(local, sandbox, verb, 409 if verb == "pause" else 200)
    shown = await show(local, sandbox)
    assert (shown["failures"], shown["restart_at"]) == (0, None)
    assert shown["phase"] == ("running" if verb == "start" else "stopped")
    assert "CrashLoop" not in conditions(shown)
    await nothing_more_happens(local, sandbox)


async def nothing_more_happens(local: LocalPlatform, sandbox: str) -> None:
    """Another one dies and comes back meanwhile: so the server has looked."""
    before = await show(local, sandbox)
    other = await create(local)
    machine = next(name for name in local.kernels[RuntimeKind.GVISOR].machines if other[4:] in name)
    local.runtimes[RuntimeKind.GVISOR].die(machine)
    await becomes(local, other, planned)
    await becomes(local, other, running, step=LONGEST_WAIT)
    assert await show(local, sandbox) == before


async def test_a_call_does_not_wait_for_the_plan_and_does_not_hide_the_failures(local: LocalPlatform) -> None:
    sandbox = await create(local)
    await fail(local, sandbox, 2)
    assert (await call(local, sandbox, "exec", command="echo on"))["stdout"] == "on\n"
    assert (await show(local, sandbox))["failures"] == 3


async def test_stop_stops_and_a_call_starts(local: LocalPlatform) -> None:
    sandbox = await create(local, on_failure="stop")
    die(local)
    shown = await becomes(local, sandbox, lambda shown: shown["phase"] == "stopped")
    assert (shown["restart_at"], shown["failures"]) == (None, 0)
    await nothing_more_happens(local, sandbox)
    assert (await call(local, sandbox, "exec", command="echo on"))["stdout"] == "on\n"


async def test_leave_leaves_it_to_its_owner(local: LocalPlatform) -> None:
    sandbox = await create(local, name="left", on_failure="leave")
    die(local)
    shown = await becomes(local, sandbox, lambda shown: shown["phase"] == "failed")
    assert "disk was kept" in shown["reason"]
    refused = await call(local, sandbox, "exec", 409, command="echo on")
    assert refused["hint"] == "start it: sandkeep start left"
    await local.restart_node()  # after which everything is compared
    await nothing_more_happens(local, sandbox)
    local.runtimes[RuntimeKind.GVISOR].fail_next("boot")
    await call(local, sandbox, "start", 500)
    assert (await show(local, sandbox))["phase"] == "failed"
    assert (await call(local, sandbox, "start"))["phase"] == "running"


@pytest.mark.parametrize("on_failure", ["restart", "leave"])
async def test_what_was_held_in_memory_is_stopped(local: LocalPlatform, on_failure: str) -> None:
    sandbox = await create(local, on_failure=on_failure)
    await call(local, sandbox, "pause", hold="memory")
    die(local)
    shown = await becomes(local, sandbox, lambda shown: shown["phase"] == "stopped")
    assert "memory was lost, the disk was kept" in conditions(shown)["MemoryLost"]
    assert shown["restart_at"] is None
    assert {"sandbox.exited", "sandbox.memory_lost"} <= set(await events(local, sandbox))
    await nothing_more_happens(local, sandbox)


async def test_a_try_that_fails_plans_the_next(local: LocalPlatform) -> None:
    sandbox = await create(local)
    die(local)
    await becomes(local, sandbox, planned)
    local.runtimes[RuntimeKind.GVISOR].fail_next("boot", Internal("no luck"))
    shown = await becomes(local, sandbox, lambda shown: planned(shown) and shown["failures"] == 2, step=1)
    assert "no luck" in shown["reason"]
    await becomes(local, sandbox, running, step=1)


@pytest.mark.parametrize("days", [-1, 1])
async def test_a_wall_clock_that_jumps_changes_nothing(local: LocalPlatform, days: int) -> None:
    sandbox = await create(local)
    shown = await fail(local, sandbox, 3)
    await another_comes_back_first(local, sandbox, shown)  # so the plan has been seen
    local.clock.jump(days * 86400)
    await another_comes_back_first(local, sandbox, shown)
    local.clock.advance(10)
    await becomes(local, sandbox, running)


async def another_comes_back_first(local: LocalPlatform, sandbox: str, before: dict[str, Any]) -> None:
    """It waits for 8 s; another, which waits for 1 s, comes back meanwhile."""
    other = await create(local)
    machine = next(name for name in local.kernels[RuntimeKind.GVISOR].machines if other[4:] in name)
    local.runtimes[RuntimeKind.GVISOR].die(machine)
    await becomes(local, other, planned)
    local.clock.advance(2)
    await becomes(local, other, running)
    assert await show(local, sandbox) == before


async def test_an_end_that_nobody_saw_counts_once(local: LocalPlatform) -> None:
    sandbox = await create(local)
    await local.kill_node()
    die(local)
    await local.start_node()
    shown = await becomes(local, sandbox, planned)
    assert (shown["failures"], "gone when the node came back" in shown["reason"]) == (1, True)
    await local.restart_node()  # the fact, and two comparisons
    shown = await becomes(local, sandbox, running, step=1)
    assert shown["failures"] == 1
    assert (await events(local, sandbox)).count("sandbox.exited") == 1


async def test_what_cannot_be_asked(local: LocalPlatform) -> None:
    for rule in ("restart", "leave"):
        answer = await local.http.post("/v1/sandboxes", json={"persistence": "ephemeral", "on_failure": rule})
        assert (answer.status_code, answer.json()["field"]) == (400, "on_failure")
    ephemeral = await create(local, persistence="ephemeral")
    assert (await show(local, ephemeral))["on_failure"] == "stop"
    answer = await local.http.patch(f"/v1/sandboxes/{ephemeral}", json={"on_failure": "restart"})
    assert answer.status_code == 400
    await create(local, name="one")
    answer = await local.http.post("/v1/sandboxes", json={"name": "one", "on_failure": "leave"})
    assert (answer.status_code, answer.json()["fields"]) == (409, ["on_failure"])
