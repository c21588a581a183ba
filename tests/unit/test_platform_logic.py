"""The engine and the control plane on fakes: what must hold when steps fail and the node dies between any two lines."""

from dataclasses import replace
from typing import Any

import anyio
import pytest

from sandkeep.contracts.guest import Unsavable
from sandkeep.control.allowance import Allowance, Quota
from sandkeep.domain.errors import Internal, NoCapacity, PauseFailed, Unavailable
from sandkeep.domain.sandbox import Hold, Phase, RuntimeKind
from sandkeep.lib.turns import Turns
from sandkeep.testing.platform import LocalPlatform

pytestmark = pytest.mark.anyio


async def create(local: LocalPlatform, **fields: Any) -> dict[str, Any]:
    answer = await local.http.post("/v1/sandboxes", json=fields)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def show(local: LocalPlatform, sandbox: dict[str, Any]) -> dict[str, Any]:
    return dict((await local.http.get(f"/v1/sandboxes/{sandbox['id']}")).json())


async def phase_becomes(local: LocalPlatform, sandbox: dict[str, Any], phase: str) -> dict[str, Any]:
    url = f"/v1/sandboxes/{sandbox['id']}/wait"
    answer = await local.http.get(url, params={"phase": phase, "timeout": 20}, timeout=30)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def nothing_is_left(local: LocalPlatform) -> None:
    assert all(not kernel.machines for kernel in local.kernels.values())
    assert await local.networks.attached() == {}
    contents = await local.disks.contents()
    assert (contents.disks, contents.generations) == ({}, {})
    assert (await local.node.fsck())["findings"] == []


@pytest.mark.parametrize("step", ["boot"])
async def test_a_create_that_fails_leaves_nothing(local: LocalPlatform, step: str) -> None:
    local.runtimes[RuntimeKind.GVISOR].fail_next(step)
    answer = await local.http.post("/v1/sandboxes", json={"name": "one"})
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    await nothing_is_left(local)
    assert (await local.http.get("/v1/sandboxes")).json()["items"] == []
    await create(local, name="one")  # the name is free again


async def test_nobody_waits_for_the_agent_of_a_machine_that_has_ended(
    local: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(endpoint: Any, deadline: float) -> None:
        await anyio.lowlevel.checkpoint()
        kernel = local.kernels[RuntimeKind.GVISOR]
        local.runtimes[RuntimeKind.GVISOR].die(next(iter(kernel.machines)), "ended: it was out of memory")
        await anyio.sleep_forever()

    with monkeypatch.context() as patched, anyio.fail_after(10):
        patched.setattr(local.guest, "wait_ready", never)
        answer = await local.http.post("/v1/sandboxes", json={})
    assert answer.status_code == 500
    assert "did not come up: ended: it was out of memory" in answer.json()["detail"]
    await nothing_is_left(local)


async def test_a_full_pause_and_resume_keep_the_memory(local: LocalPlatform) -> None:
    sandbox = await create(local, persistence="full")
    machine = next(iter(local.kernels[RuntimeKind.GVISOR].machines.values()))
    machine.memory["counter"] = "7"
    paused = (await local.http.post(f"/v1/sandboxes/{sandbox['id']}/pause")).json()
    assert (paused["phase"], paused["hold"]) == ("paused", "disk")
    assert local.kernels[RuntimeKind.GVISOR].machines == {}
    await local.restart_node()
    resumed = (await local.http.post(f"/v1/sandboxes/{sandbox['id']}/resume")).json()
    assert resumed["phase"] == "running"
    assert next(iter(local.kernels[RuntimeKind.GVISOR].machines.values())).memory == {"counter": "7"}
    assert (await local.disks.contents()).generations == {}


@pytest.mark.parametrize("step", ["prepare_save", "save"])
async def test_a_pause_that_fails_leaves_it_running_and_says_why(local: LocalPlatform, step: str) -> None:
    sandbox = await create(local, persistence="full")
    local.runtimes[RuntimeKind.GVISOR].fail_next(step, PauseFailed("a deleted file is open"))
    answer = await local.http.post(f"/v1/sandboxes/{sandbox['id']}/pause")
    assert (answer.status_code, answer.json()["code"]) == (409, "pause_failed")
    assert answer.json()["connections_reset"] is True
    shown = await show(local, sandbox)
    assert shown["phase"] == "running"
    assert {c["kind"]: c["value"] for c in shown["conditions"]}["MemorySavable"] is False
    assert "deleted file" in shown["reason"]
    assert not next(iter(local.kernels[RuntimeKind.GVISOR].machines.values())).frozen
    assert (
        await local.http.post(f"/v1/sandboxes/{sandbox['id']}/exec", json={"command": "echo on"})
    ).status_code == 200
    assert (await local.disks.contents()).generations == {}


async def test_connections_that_wait_are_refused_and_the_pause_goes_on(local: LocalPlatform) -> None:
    sandbox = await create(local, persistence="full")
    (network,) = local.networks.networks.values()
    network.connecting = 2
    failure = PauseFailed("a process waits for a connection to be answered", connecting=True)
    local.runtimes[RuntimeKind.GVISOR].fail_next("prepare_save", failure)
    assert (await local.http.post(f"/v1/sandboxes/{sandbox['id']}/pause")).json()["phase"] == "paused"
    assert network.connecting == 0


async def test_what_cannot_be_saved_is_named_before_anything_is_touched(local: LocalPlatform) -> None:
    sandbox = await create(local, persistence="full")
    local.guest.unsavable = (Unsavable(7, "mariadbd", "/var/lib/x"),)
    answer = await local.http.post(f"/v1/sandboxes/{sandbox['id']}/pause")
    assert answer.json()["unsavable"] == [{"pid": 7, "process": "mariadbd", "path": "/var/lib/x"}]
    assert answer.json()["connections_reset"] is False
    local.guest.unsavable = (Unsavable(7, "mariadbd", "/var/lib/x"),)
    stopped = (await local.http.post(f"/v1/sandboxes/{sandbox['id']}/pause", json={"or_disk": True})).json()
    assert stopped["phase"] == "stopped"
    assert "stopped instead of paused" in stopped["reason"]


async def test_a_resume_that_fails_leaves_it_paused(local: LocalPlatform) -> None:
    sandbox = await create(local, persistence="full")
    await local.http.post(f"/v1/sandboxes/{sandbox['id']}/pause")
    generations = (await local.disks.contents()).generations
    local.runtimes[RuntimeKind.GVISOR].fail_next("restore", Internal("the image does not fit"))
    answer = await local.http.post(f"/v1/sandboxes/{sandbox['id']}/resume")
    assert answer.status_code == 500
    assert (await show(local, sandbox))["phase"] == "paused"
    assert (await local.disks.contents()).generations == generations
    assert local.kernels[RuntimeKind.GVISOR].machines == {}
    assert (await local.http.post(f"/v1/sandboxes/{sandbox['id']}/resume")).json()["phase"] == "running"


@pytest.mark.parametrize("persistence", ["volume", "full"])
async def test_a_machine_that_dies_leaves_a_stopped_sandbox(local: LocalPlatform, persistence: str) -> None:
    sandbox = await create(local, persistence=persistence, on_failure="stop")
    machine = next(iter(local.kernels[RuntimeKind.GVISOR].machines))
    local.runtimes[RuntimeKind.GVISOR].die(machine, oom=True)
    shown = await phase_becomes(local, sandbox, "stopped")
    assert {c["kind"]: c["value"] for c in shown["conditions"]}["OutOfMemory"] is True
    events = (await local.http.get(f"/v1/sandboxes/{sandbox['id']}/events")).json()["items"]
    assert "sandbox.out_of_memory" in {event["kind"] for event in events}
    assert (await local.http.post(f"/v1/sandboxes/{sandbox['id']}/start")).json()["phase"] == "running"


async def test_an_ephemeral_one_goes_with_its_machine(local: LocalPlatform) -> None:
    await create(local, persistence="ephemeral")
    local.runtimes[RuntimeKind.GVISOR].die(next(iter(local.kernels[RuntimeKind.GVISOR].machines)))
    with anyio.fail_after(10):
        while (await local.http.get("/v1/sandboxes")).json()["items"]:
            await anyio.sleep(0.02)
    await nothing_is_left(local)


async def test_a_machine_that_dies_while_the_node_is_away(local: LocalPlatform) -> None:
    kept = await create(local, persistence="volume", on_failure="stop")
    gone = await create(local, persistence="ephemeral")
    await local.kill_node()
    for machine in list(local.kernels[RuntimeKind.GVISOR].machines):
        local.runtimes[RuntimeKind.GVISOR].die(machine)
    await local.start_node()
    shown = await phase_becomes(local, kept, "stopped")
    assert "gone when the node came back" in shown["reason"]
    with anyio.fail_after(10):
        while (await local.http.get(f"/v1/sandboxes/{gone['id']}")).status_code != 404:
            await anyio.sleep(0.02)


async def test_disks_without_a_record_are_kept_and_machines_are_killed(local: LocalPlatform) -> None:
    sandbox = await create(local)
    await local.kill_node()
    (local.folder / "node" / "sandboxes" / f"{sandbox['id']}.json").unlink()
    await local.start_node()
    assert local.kernels[RuntimeKind.GVISOR].machines == {}
    assert sandbox["id"] in (await local.disks.contents()).disks
    kinds = {finding["kind"] for finding in (await local.node.fsck())["findings"]}
    assert "disk.unowned" in kinds
    with anyio.fail_after(10):
        while (await show(local, sandbox))["phase"] != "failed":
            await anyio.sleep(0.05)
    assert (await local.http.delete(f"/v1/sandboxes/{sandbox['id']}")).status_code == 204


async def test_delete_cuts_in_on_a_create(local: LocalPlatform) -> None:
    boot = local.runtimes[RuntimeKind.GVISOR].boot
    entered = anyio.Event()

    async def slow(plan: Any) -> None:
        entered.set()
        await anyio.sleep(30)
        await boot(plan)

    local.runtimes[RuntimeKind.GVISOR].boot = slow  # type: ignore[method-assign]
    outcome: list[int] = []

    async def creating() -> None:
        outcome.append((await local.http.post("/v1/sandboxes", json={"name": "slow"})).status_code)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(creating)
        await entered.wait()
        assert (await local.http.delete("/v1/sandboxes/slow")).status_code == 204
    assert outcome == [404]
    await nothing_is_left(local)


async def test_two_pauses_at_once_have_one_outcome(local: LocalPlatform) -> None:
    sandbox = await create(local, persistence="full")
    answers: list[int] = []

    async def pause() -> None:
        answers.append((await local.http.post(f"/v1/sandboxes/{sandbox['id']}/pause")).status_code)

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(pause)
    assert answers == [200, 200]
    assert len((await local.disks.contents()).generations) == 1


async def test_idempotency_keys_hold_under_concurrent_retries(local: LocalPlatform) -> None:
    answers: list[Any] = []

    async def post(memory: str = "1GiB") -> None:
        answers.append(
            await local.http.post("/v1/sandboxes", json={"memory": memory}, headers={"idempotency-key": "k1"})
        )

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(post)
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [201]
    await post("2GiB")
    assert answers[-1].status_code == 409


async def test_a_fact_survives_the_death_of_the_node(local: LocalPlatform) -> None:
    sandbox = await create(local)
    operation = local.parts.records.sandboxes[sandbox["id"]]
    assert operation.phase == "running"
    await local.restart_node()
    assert (await local.http.post(f"/v1/sandboxes/{sandbox['id']}/exec", json={"command": "echo hi"})).json()[
        "stdout"
    ] == "hi\n"
    assert (await local.node.fsck())["findings"] == []


async def test_wake_and_no_resume(local: LocalPlatform) -> None:
    sandbox = await create(local)
    url = f"/v1/sandboxes/{sandbox['id']}"
    await local.http.post(f"{url}/stop")
    refused = await local.http.post(f"{url}/exec", json={"command": "echo x", "no_resume": True})
    assert (refused.status_code, refused.json()["phase"]) == (409, "stopped")
    assert (await local.http.post(f"{url}/exec", json={"command": "echo x"})).json()["stdout"] == "x\n"
    await local.http.post(f"{url}/pause", json={"hold": "memory"})
    assert (await local.http.post(f"{url}/exec", json={"command": "exit 3"})).json()["exit_code"] == 3


async def test_admission_says_what_is_free(local: LocalPlatform) -> None:
    answer = await local.http.post("/v1/sandboxes", json={"memory": "100GiB"})
    assert (answer.status_code, answer.json()["code"]) == (507, "no_capacity")
    assert answer.headers["retry-after"] == "30"
    assert answer.json()["memory_free"] == local.host.memory_total * 4
    await nothing_is_left(local)


@pytest.mark.parametrize(
    ("short", "word"),
    [
        ({"processes_free": 100}, "processes"),
        ({"descriptors_free": 10}, "descriptors"),
        ({"files_free": 3}, "inodes"),
        ({"data_free": 1 << 20}, "disk"),
    ],
)
async def test_what_runs_out_on_the_host_refuses_one_more(
    local: LocalPlatform, short: dict[str, Any], word: str
) -> None:
    there = await create(local)
    plenty, local.host = local.host, replace(local.host, **short)
    answer = await local.http.post("/v1/sandboxes", json={})
    assert (answer.status_code, answer.json()["code"]) == (507, "no_capacity")
    assert word in answer.json()["detail"]
    assert answer.headers["retry-after"] == "30"
    exec_ = await local.http.post(f"/v1/sandboxes/{there['id']}/exec", json={"command": "echo on"})
    assert exec_.status_code == 200
    local.host = plenty
    assert (await local.http.post("/v1/sandboxes", json={})).status_code == 201


async def test_a_pool_without_room_for_metadata_takes_no_new_disk_and_no_memory(local: LocalPlatform) -> None:
    plain, full = await create(local), await create(local, persistence="full")
    local.disks.metadata_free = 1 << 20
    for path, body in (("", {}), (f"/{full['id']}/pause", {"hold": "disk"})):
        answer = await local.http.post(f"/v1/sandboxes{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (507, "no_capacity"), answer.text
        assert "small files" in answer.json()["detail"]
    assert (await local.http.post(f"/v1/sandboxes/{plain['id']}/stop")).status_code == 200
    assert (await local.http.post(f"/v1/sandboxes/{plain['id']}/start")).status_code == 200, "to clean up"
    assert (await local.http.delete(f"/v1/sandboxes/{full['id']}")).status_code in (200, 204)
    local.disks.metadata_free = 1 << 30
    assert (await local.http.post("/v1/sandboxes", json={})).status_code == 201


async def test_a_burst_is_not_admitted_beyond_the_limit(local: LocalPlatform) -> None:
    fits = 4 * local.host.memory_total // (8 << 30)
    statuses: list[int] = []

    async def post() -> None:
        statuses.append((await local.http.post("/v1/sandboxes", json={"memory": "8GiB"})).status_code)

    async with anyio.create_task_group() as tasks:
        for _ in range(2 * fits):
            tasks.start_soon(post)
    assert sorted(statuses) == [201] * fits + [507] * fits


async def test_half_of_a_surrogate_pair_is_refused_everywhere(local: LocalPlatform) -> None:
    """It once was kept, and then no list could be answered."""
    sandbox = await create(local, name="one")
    half = '"\\ud800"'
    for url, body in (
        ("/v1/sandboxes", f'{{"env": {{"A": {half}}}}}'),
        ("/v1/keys", f'{{"name": {half}}}'),
        ("/v1/templates", f'{{"name": "t", "steps": [{half}]}}'),
        (f"/v1/sandboxes/{sandbox['id']}/exec", f'{{"command": {half}}}'),
    ):
        answer = await local.http.post(url, content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument"), answer.text
    assert len((await local.http.get("/v1/sandboxes")).json()["items"]) == 1


@pytest.mark.parametrize(
    "query",
    [
        "sandboxes?cursor=WzFlNDAwLCJhIl0",  # [1e400,"a"]
        "sandboxes?cursor=W05hTiwiYSJd",  # [NaN,"a"]
        "sandboxes?cursor=WzEsbnVsbF0",  # [1,null]
        "sandboxes?label=%00=x",
        "sandboxes?label=%22=x",
        "events?after=9223372036854775808",
    ],
)
async def test_odd_questions(local: LocalPlatform, query: str) -> None:
    answer = await local.http.get(f"/v1/{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument"), answer.text


async def test_a_delete_that_the_node_s_death_interrupted_is_finished_when_it_is_back(local: LocalPlatform) -> None:
    sandbox = await create(local)
    await local.kill_node()
    local.runner.node = None  # nobody answers
    assert (await local.http.delete(f"/v1/sandboxes/{sandbox['id']}")).status_code == 503
    assert (await show(local, sandbox))["phase"] == "deleting"
    await local.start_node()
    with anyio.fail_after(20):
        while (await local.http.get(f"/v1/sandboxes/{sandbox['id']}")).status_code != 404:
            await anyio.sleep(0.05)
    await nothing_is_left(local)


async def test_two_deletes_at_once_both_end_with_nothing_left(local: LocalPlatform) -> None:
    sandbox = await create(local)
    statuses: list[int] = []

    async def delete() -> None:
        statuses.append((await local.http.delete(f"/v1/sandboxes/{sandbox['id']}")).status_code)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(delete)
    assert set(statuses) <= {204, 404}
    await nothing_is_left(local)


async def test_what_cannot_be_paused_at_its_end_is_tried_ever_more_rarely(
    local: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keeps no other waiting, though its own pause hangs for a while."""
    stuck = await create(local, name="stuck", persistence="full")
    brief = await create(local, name="brief")
    tries, go_on = 0, anyio.Event()

    async def hangs(*_: Any) -> Any:
        nonlocal tries
        tries += 1
        await go_on.wait()
        raise PauseFailed("a deleted file is open")

    monkeypatch.setattr(local.node, "pause", hangs)
    for sandbox in (stuck, brief):
        await local.http.patch(f"/v1/sandboxes/{sandbox['id']}", json={"ttl": "2s"})
    await phase_becomes(local, brief, "stopped")
    assert (await show(local, stuck))["phase"] == "pausing"
    go_on.set()
    await phase_becomes(local, stuck, "running")
    await anyio.sleep(2)  # ticks of the timers
    assert tries == 1
    why = (await local.http.get(f"/v1/sandboxes/{stuck['id']}/why")).json()
    assert any("ever more rarely" in step["what"] for step in why["next"])


async def test_a_call_on_what_the_node_does_not_know_says_where_it_may_be(local: LocalPlatform) -> None:
    sandbox = await create(local, name="one")
    url = f"/v1/sandboxes/{sandbox['id']}"
    await local.http.post(f"{url}/stop")
    local.parts.records.sandboxes.pop(sandbox["id"])
    for _ in range(2):
        answer = await local.http.post(f"{url}/start")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert "quarantine" in answer.json()["detail"]
        assert (await show(local, sandbox))["phase"] == "failed"
    commands = [step["command"] for step in (await local.http.get(f"{url}/why")).json()["can"]]
    assert f"sandkeep node quarantine restore {sandbox['id']}" in commands
    assert "sandkeep start one" not in commands


@pytest.mark.parametrize("days", [1, -1])
async def test_a_clock_that_jumps_a_day_ends_nothing(local: LocalPlatform, days: int) -> None:
    made = [
        await create(local, name="short", ttl="1h", on_expiry="delete"),
        await create(local, name="gone", ttl="30s", persistence="ephemeral"),
        await create(local, name="watched", persistence="ephemeral", grace="60s"),
        await create(local, name="full", persistence="full", ttl="2h"),
    ]
    await anyio.sleep(1.2)  # a tick of the timers before it
    local.clock.jump(days * 86400)
    late = await create(local, name="late", ttl="1h", on_expiry="delete")
    await anyio.sleep(2.5)
    for sandbox in [*made, late]:
        assert (await show(local, sandbox))["phase"] == "running"
    assert (await local.http.post(f"/v1/sandboxes/{late['id']}/stop")).json()["phase"] == "stopped"
    if days > 0:  # set back, lifetimes only are longer
        local.clock.advance(2)  # (a long step would count as a server that was frozen)
        for _ in range(10):
            local.clock.advance(4)
            await anyio.sleep(0.02)
        with anyio.fail_after(10):
            while (await local.http.get(f"/v1/sandboxes/{made[1]['id']}")).status_code != 404:
                await anyio.sleep(0.02)
        assert (await show(local, made[0]))["phase"] == "running"


async def test_a_change_does_not_overtake_a_delete(local: LocalPlatform) -> None:
    sandbox = await create(local)
    url = f"/v1/sandboxes/{sandbox['id']}"
    local.runner.node = None
    assert (await local.http.delete(url)).status_code == 503
    for method, path in (("PATCH", ""), ("POST", "/stop"), ("POST", "/start"), ("POST", "/pause")):
        answer = await local.http.request(method, url + path, json={"labels": {"a": "b"}} if method == "PATCH" else {})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), answer.text
    local.runner.node = local.node
    with anyio.fail_after(20):
        while (await local.http.get(url)).status_code != 404:
            await anyio.sleep(0.05)
    await nothing_is_left(local)


@pytest.mark.parametrize("how", ["deleting", "gone"])
async def test_a_create_that_is_repeated_while_its_first_try_is_given_up_is_not_acknowledged(
    local: LocalPlatform, how: str
) -> None:
    sandbox = await create(local, name="one")
    row = await local.services.sandboxes.by_id(sandbox["id"])
    assert row is not None
    await local.write_row(replace(row, status=replace(row.status, phase=Phase.STARTING)))
    answers = []

    async def repeat() -> None:
        answers.append(await local.http.post("/v1/sandboxes", json={"name": "one"}))

    async with anyio.create_task_group() as tasks:
        async with local.services.sandboxes.turn(sandbox["id"]):
            tasks.start_soon(repeat)
            await anyio.wait_all_tasks_blocked()
            if how == "deleting":
                await local.write_row(replace(row, status=replace(row.status, phase=Phase.DELETING)))
            else:
                await local.services.sandboxes.forget(row, "given up")
    assert (answers[0].status_code, answers[0].json()["code"]) == (409, "busy")
    assert int(answers[0].headers["retry-after"]) > 0


async def test_a_project_has_no_more_sandboxes_than_it_may(local: LocalPlatform) -> None:
    """Also when they are asked for at once. What exists is found, and a deleted one makes room."""
    local.services.sandboxes._quota = Quota(Allowance(sandboxes=3), local.clock)
    answers: list[int] = []

    async def one(number: int) -> None:
        answer = await local.http.post("/v1/sandboxes", json={"name": f"n{number}"})
        answers.append(answer.status_code)
        if answer.status_code == 429:
            assert (answer.json()["code"], answer.json()["limit"]) == ("quota_exceeded", 3)
            assert int(answer.headers["retry-after"]) > 0

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(one, number)
    assert sorted(answers) == [201] * 3 + [429] * 5
    names = [item["name"] for item in (await local.http.get("/v1/sandboxes")).json()["items"]]
    assert (await local.http.post("/v1/sandboxes", json={"name": names[0]})).status_code == 200
    await local.http.delete(f"/v1/sandboxes/{names[0]}")
    await create(local)


async def test_a_project_creates_no_faster_than_it_may(local: LocalPlatform) -> None:
    """What exists, or is asked for by a key of before, counts for nothing."""
    local.services.sandboxes._quota = Quota(Allowance(creates=2), local.clock)
    again = {"Idempotency-Key": "once"}
    for _ in range(3):
        assert (await local.http.post("/v1/sandboxes", json={"name": "one"})).status_code in (200, 201)
        assert (await local.http.post("/v1/sandboxes", json={}, headers=again)).status_code in (200, 201)
    answer = await local.http.post("/v1/sandboxes", json={"name": "three"})
    assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded"), answer.text
    assert 0 < int(answer.headers["retry-after"]) <= 30
    assert (await local.http.get("/v1/sandboxes/three")).status_code == 404


async def test_who_guesses_keys_is_told_to_wait(local: LocalPlatform) -> None:
    assert (await local.http.get("/v1/sandboxes")).status_code == 200
    for number in range(40):
        guess = {"Authorization": f"Bearer sk_{number}"}
        answer = await local.http.get("/v1/sandboxes", headers=guess)
        if answer.status_code == 429:
            break
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert (answer.status_code, number) == (429, 30)
    assert int(answer.headers["retry-after"]) > 0
    _, unused = await local.services.keys.create(await local.services.keys.default_project(), "unused")
    await local.stop_server()
    await local.start_server()
    for number in range(40):
        await local.http.get("/v1/sandboxes", headers={"Authorization": f"Bearer sk_again_{number}"})
    for headers in ({}, {"Authorization": f"Bearer {unused}"}):
        assert (await local.http.get("/v1/sandboxes", headers=headers)).status_code == 200, "a key is not affected"


async def test_a_rollback_that_cannot_be_done_touches_nothing(local: LocalPlatform) -> None:
    sandbox = await create(local, name="one")
    url = "/v1/sandboxes/one"
    made = (await local.http.post(f"{url}/snapshots", json={"name": "first"})).json()
    generation = local.parts.records.snapshots[made["id"]].generation.id
    await local.disks.drop_generation(sandbox["id"], generation)
    machines = set(local.kernels[RuntimeKind.GVISOR].machines)
    answer = await local.http.post(f"{url}/rollback", json={"snapshot": "first", "keep_before": False})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert set(local.kernels[RuntimeKind.GVISOR].machines) == machines
    assert (await show(local, sandbox))["phase"] == "running"
    brief = await create(local, persistence="ephemeral")
    await local.http.post(f"/v1/sandboxes/{brief['id']}/snapshots", json={"name": "first"})
    answer = await local.http.post(f"/v1/sandboxes/{brief['id']}/rollback", json={"snapshot": "first"})
    assert (answer.status_code, answer.json()["code"]) == (400, "unsupported")
    assert (await show(local, brief))["phase"] == "running"


async def test_a_rollback_needs_no_room_that_it_gives_up(local: LocalPlatform) -> None:
    """The host's memory is promised to the last byte, and it still goes back."""
    total = 4 * local.host.memory_total
    sandbox = await create(local, name="one", memory=total)
    await local.http.post("/v1/sandboxes/one/snapshots", json={"name": "first"})
    answer = await local.http.post("/v1/sandboxes/one/rollback", json={"snapshot": "first"})
    assert (answer.status_code, answer.json()["phase"]) == (200, "running"), answer.text
    assert (await show(local, sandbox))["phase"] == "running"


async def test_a_promotion_with_a_key_is_made_once(local: LocalPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that failed on its way goes on with the moments that it kept; one that was done is not done again."""
    assert (await local.http.post("/v1/sandboxes", json={"name": "one"})).status_code == 201
    assert (await local.http.post("/v1/sandboxes/one/fork", json={"name": "try", "kind": "disk"})).status_code == 201
    key = {"Idempotency-Key": "p"}

    async def promote(**body: Any) -> Any:
        return await local.http.post("/v1/sandboxes/try/promote", json={"kind": "disk", **body}, headers=key)

    async def kept() -> list[str]:
        return [one["id"] for one in (await local.http.get("/v1/sandboxes/one/snapshots")).json()["items"]]

    async def fails(*_: Any, **__: Any) -> None:
        raise Unavailable("the node is away")

    with monkeypatch.context() as broken:
        broken.setattr(local.services.snapshots, "rollback", fails)
        assert (await promote(into="one")).status_code == 503
    begun = await kept()
    assert (await promote(into="one")).status_code == 200
    assert await kept() == begun, "the moment before is the one before the first try"
    (local.disks.path((await local.http.get("/v1/sandboxes/one")).json()["id"]) / "later").write_text("newer")
    done = await promote(into="one")
    assert (done.status_code, await kept()) == (200, begun)
    assert (local.disks.path(done.json()["id"]) / "later").read_text() == "newer", "it was not rolled back again"
    assert (await promote(into="one", delete_others=True)).status_code == 409


@pytest.mark.parametrize("kind", ["disk", "full"])
async def test_a_promotion_that_is_tried_again_leaves_a_parent_that_ran_running(
    local: LocalPlatform, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The death of the node in the middle of the first try leaves it stopped, or paused at that moment."""
    await create(local, name="one", persistence="full")
    await local.http.post("/v1/sandboxes/one/fork", json={"name": "try", "kind": kind})

    async def dies(project_id: str, parent: str, *_: Any, **__: Any) -> None:
        if kind == "full":
            await local.services.sandboxes.pause(project_id, parent, Hold.DISK, False)
        else:
            await local.services.sandboxes.stop(project_id, parent)
        raise Unavailable("the node is away")

    asked: dict[str, Any] = {"json": {"kind": kind, "into": "one"}, "headers": {"Idempotency-Key": "p"}}
    with monkeypatch.context() as broken:
        broken.setattr(local.services.snapshots, "rollback", dies)
        assert (await local.http.post("/v1/sandboxes/try/promote", **asked)).status_code == 503
    done = await local.http.post("/v1/sandboxes/try/promote", **asked)
    assert (done.status_code, done.json()["phase"]) == (200, "running"), done.text


async def test_what_went_back_runs_on_when_the_node_dies_before_it_forgets_the_intent(local: LocalPlatform) -> None:
    sandbox = await create(local, name="one")
    await local.http.post("/v1/sandboxes/one/snapshots", json={"name": "first"})
    await local.http.post("/v1/sandboxes/one/rollback", json={"snapshot": "first", "keep_before": False})
    after = local.parts.records.sandboxes[sandbox["id"]]
    facts = {"snapshot": after.head, "memory": False}
    left = local.parts.journal.begin(list(after.outcomes)[-1], "rollback", after.id, **facts)
    for step in ("machine.end", "disk.restore", "record"):
        left.step(step)
    await local.restart_node()
    assert local.parts.records.sandboxes[after.id].phase is Phase.RUNNING
    assert set(local.kernels[RuntimeKind.GVISOR].machines) == {after.machine}


async def test_the_key_of_a_fork_is_for_one_request(local: LocalPlatform) -> None:
    await create(local, name="one")
    for name in ("first", "second"):
        await local.http.post("/v1/sandboxes/one/snapshots", json={"name": name})
    key = {"Idempotency-Key": "once"}

    async def fork(**body: Any) -> Any:
        return await local.http.post("/v1/sandboxes/one/fork", json=body, headers=key)

    made = (await fork(snapshot="first", count=2)).json()["items"]
    await local.http.patch("/v1/sandboxes/one", json={"labels": {"changed": "since"}})
    again = (await fork(snapshot="first", count=2)).json()["items"]
    assert [one["id"] for one in again] == [one["id"] for one in made]
    for other in (
        {"snapshot": "second", "count": 2},
        {"snapshot": "first", "count": 1},
        {"snapshot": "first", "count": 3},
    ):
        assert (await fork(**other)).status_code == 409
    events = (await local.http.get("/v1/sandboxes/one/events")).json()["items"]
    assert sum(event["kind"] == "sandbox.forked" for event in events) == 1
    assert len((await local.http.get("/v1/sandboxes")).json()["items"]) == 3


@pytest.mark.parametrize("verb", ["fork", "promote"])
async def test_a_request_that_is_repeated_goes_on_with_what_it_kept_whatever_the_phase_is_now(
    local: LocalPlatform, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """The first try died after it had kept the memory; its source is stopped by now."""
    await create(local, name="one", persistence="full")
    await local.http.post("/v1/sandboxes/one/fork", json={"name": "try"})
    asked: dict[str, Any] = {"json": {"count": 2, "name": "f"}, "headers": {"Idempotency-Key": "k"}}
    broken = local.services.sandboxes, "create"
    if verb == "promote":
        asked["json"], broken = {"into": "one"}, (local.services.snapshots, "keep_before")

    async def dies(*_: Any, **__: Any) -> None:
        raise Unavailable("the server died")

    async def kept() -> set[str]:
        return {one["id"] for one in (await local.http.get("/v1/sandboxes/try/snapshots")).json()["items"]}

    with monkeypatch.context() as dying:
        dying.setattr(*broken, dies)
        assert (await local.http.post(f"/v1/sandboxes/try/{verb}", **asked)).status_code == 503
    assert len(before := await kept()) == 1
    await local.http.post("/v1/sandboxes/try/stop")
    done = await local.http.post(f"/v1/sandboxes/try/{verb}", **asked)
    assert done.status_code in (200, 201), done.text
    assert await kept() == (before if verb == "fork" else set())
    again = await local.http.post(f"/v1/sandboxes/try/{verb}", **asked)
    assert again.json() == done.json()


async def test_a_snapshot_that_the_node_has_lost_is_listed_no_more(local: LocalPlatform) -> None:
    await create(local, name="one")
    url = "/v1/sandboxes/one/snapshots"
    first = (await local.http.post(url, json={"name": "first"})).json()
    await local.http.post(url, json={"name": "second"})
    local.parts.records.remove_snapshot(first["id"])
    await local.services.reconciler.compare(first=False)
    (second,) = (await local.http.get(url)).json()["items"]
    assert (second["name"], second["parent"]) == ("second", None)
    kinds = [event["kind"] for event in (await local.http.get("/v1/sandboxes/one/events")).json()["items"]]
    assert kinds[-1] == "snapshot.lost"


@pytest.mark.parametrize("what", ["the pool is full", "the record cannot be written", "the node is away"])
async def test_a_snapshot_is_made_or_nothing_of_it_is_left(
    local: LocalPlatform, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    sandbox = await create(local, name="one")
    url = "/v1/sandboxes/one/snapshots"

    def full(_: object) -> None:
        raise NoCapacity("the host's disk is full")

    with monkeypatch.context() as patched:
        match what:
            case "the pool is full":
                patched.setattr(local.disks, "full", True)
            case "the record cannot be written":
                patched.setattr(local.parts.records, "save_snapshot", full)
            case _:
                patched.setattr(local.runner, "node", None)
        answer = await local.http.post(url, json={"name": "first"})
        assert answer.status_code == (503 if what == "the node is away" else 507), answer.text

    async def settled() -> bool:
        await local.services.reconciler.compare(first=False)
        row = await local.services.sandboxes.by_id(sandbox["id"])
        return row is not None and row.operation is None

    with anyio.fail_after(20):
        while not await settled():
            await anyio.sleep(0.05)
    await local.services.reconciler.compare(first=False)
    assert (await local.http.get(url)).json()["items"] == []
    assert (await local.disks.contents()).generations == {}
    assert (await local.http.post(url, json={"name": "first"})).status_code == 201, "the name is free again"
    await local.http.delete("/v1/sandboxes/one")
    await nothing_is_left(local)
    with anyio.fail_after(10):
        while local.parts.records.snapshots:
            await anyio.sleep(0.02)


async def test_a_burst_of_one_key_does_not_starve_another(local: LocalPlatform) -> None:
    turns = local.services.sandboxes._turns = Turns(1)
    _, other = await local.services.keys.create(await local.services.keys.default_project(), "other")

    async def one(name: str, **headers: str) -> None:
        answer = await local.http.post("/v1/sandboxes", json={"name": name}, headers=headers)
        assert answer.status_code == 201, answer.text

    async def waiting(count: int) -> None:
        with anyio.fail_after(20):
            while turns.waiting < count:
                await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        async with turns.turn("somebody"):
            for number in range(10):
                tasks.start_soon(one, f"burst-{number}")
            await waiting(10)
            tasks.start_soon(lambda: one("single", authorization=f"Bearer {other}"))
            await waiting(11)
    items = (await local.http.get("/v1/sandboxes")).json()["items"]
    single = next(item["id"] for item in items if item["name"] == "single")
    events = (await local.http.get("/v1/events?limit=1000")).json()["items"]
    started = [event["subject"] for event in events if event["kind"] == "sandbox.started"]
    assert len(started) == 11
    assert started.index(single) == 1, "after the one whose turn it was, not after all"
