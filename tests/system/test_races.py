"""Many clients change the same sandboxes at once: one order explains every answer, nothing hangs, nothing is left."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from sandkeep.sdk import Client
from support.history import SETTLED, History, explain, together
from support.instance import Instance
from support.witness import settled_fsck

CLIENTS = 8
VERBS = ["start", "stop", "pause", "resume", "get", "exec", "update"]


@pytest.fixture
def http(client: Client, instance: Instance) -> Iterator[httpx2.Client]:
    """The bare interface: the SDK would try again."""
    saved = instance.config
    with httpx2.Client(
        base_url=saved["url"],
        headers={"Authorization": f"Bearer {saved['key']}"},
        timeout=90,
        trust_env=False,
        limits=httpx2.Limits(max_connections=None),
    ) as made:
        yield made


def create(http: httpx2.Client, runtime: str, **fields: Any) -> str:
    body = {"template": "test", "runtime": runtime, "memory": "128MiB", "on_failure": "stop", **fields}
    answer = http.post("/v1/sandboxes", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def ask(http: httpx2.Client, sandbox_id: str, verb: str) -> Callable[[], tuple[int, dict[str, object]]]:
    home = f"/v1/sandboxes/{sandbox_id}"

    def call() -> tuple[int, dict[str, object]]:
        match verb:
            case "get":
                answer = http.get(home)
            case "delete":
                answer = http.delete(home)
            case "update":
                answer = http.patch(home, json={"labels": {"turn": str(random.randrange(100))}})
            case "exec":
                answer = http.post(f"{home}/exec", json={"command": "true"})
            case "pause":
                answer = http.post(f"{home}/pause", json={"hold": "memory"})
            case _:
                answer = http.post(f"{home}/{verb}")
        assert answer.status_code != 500, f"{verb}: {answer.text}"
        return answer.status_code, answer.json() if answer.content else {}

    return call


def storm(http: httpx2.Client, runtime: str, boxes: int, operations: int, seed: int, *, deletes: bool) -> None:
    """`operations` random calls of CLIENTS clients on `boxes` sandboxes; each one's answers are explained by an order."""
    histories = {create(http, runtime): History() for _ in range(boxes)}
    chance = random.Random(seed)
    verbs = VERBS * 4 + (["delete"] if deletes else [])
    plan = [(chance.choice(list(histories)), chance.choice(verbs)) for _ in range(operations)]

    def client(number: int) -> Callable[[], None]:
        def work() -> None:
            for sandbox_id, verb in plan[number::CLIENTS]:
                histories[sandbox_id].record(verb, ask(http, sandbox_id, verb))

        return work

    def wake_all() -> None:
        """A command in a frozen sandbox waits for whoever resumes it."""
        for sandbox_id, history in histories.items():
            history.record("resume", ask(http, sandbox_id, "resume"))

    together([client(number) for number in range(CLIENTS)], wake_all)
    for sandbox_id, history in histories.items():
        last = history.record("get", ask(http, sandbox_id, "get"))
        assert last.status == 404 or last.phase in SETTLED, f"it stays {last.phase} (seed {seed})"
        begin = min(call.began for call in history.calls)
        lines = "\n".join(
            f"{call.began - begin:8.3f} {call.ended - begin:8.3f} {call.verb:7} {call.status} {call.phase} {call.code}"
            for call in sorted(history.calls, key=lambda call: call.began)
        )
        assert explain(history.calls, "running"), f"no order explains (seed {seed}, {sandbox_id}):\n{lines}"
        http.delete(f"/v1/sandboxes/{sandbox_id}")


def test_one_sandbox(http: httpx2.Client, runtime: str, instance: Instance) -> None:
    storm(http, runtime, 1, 100 if runtime == "runc" else 30, random.randrange(1 << 32), deletes=False)
    settled_fsck(instance)


def test_ten_sandboxes_that_may_be_deleted_meanwhile(http: httpx2.Client, instance: Instance) -> None:
    storm(http, "runc", 10, 100, random.randrange(1 << 32), deletes=True)
    settled_fsck(instance)


@pytest.mark.long
@pytest.mark.parametrize("turn", range(5))
def test_long_storms(http: httpx2.Client, runtime: str, instance: Instance, turn: int) -> None:
    storm(http, runtime, 1, 300, random.randrange(1 << 32), deletes=turn % 2 == 0)
    storm(http, runtime, 5, 300, random.randrange(1 << 32), deletes=True)
    settled_fsck(instance)


def test_an_idempotency_key_holds_under_a_hundred_retries(http: httpx2.Client, instance: Instance) -> None:
    """All of them at once, and by several clients."""
    made: list[tuple[int, str]] = []
    body = {"template": "test", "runtime": "runc", "memory": "128MiB"}

    def one() -> None:
        answer = http.post("/v1/sandboxes", json=body, headers={"Idempotency-Key": "tests-storm"})
        made.append((answer.status_code, answer.text if answer.status_code >= 400 else answer.json()["id"]))

    together([one] * 100, lambda: None)
    assert sorted(status for status, _ in made) == [200] * 99 + [201], made
    assert len({found for _, found in made}) == 1
    assert len(http.get("/v1/sandboxes").json()["items"]) == 1


def test_creates_and_deletes_of_one_name(http: httpx2.Client, instance: Instance) -> None:
    """Whatever the order is, each answer is one that is documented, and at the end there is at most one."""
    statuses: dict[str, set[int]] = {"create": set(), "delete": set()}
    body = {"template": "test", "runtime": "runc", "memory": "128MiB", "name": "contended"}

    def creates() -> None:
        for _ in range(6):
            answer = http.post("/v1/sandboxes", json=body)
            statuses["create"].add(answer.status_code)
            assert answer.status_code < 500, answer.text

    def deletes() -> None:
        for _ in range(6):
            answer = http.delete("/v1/sandboxes/contended")
            statuses["delete"].add(answer.status_code)
            assert answer.status_code < 500, answer.text

    together([creates, creates, creates, deletes, deletes], lambda: None)
    assert statuses["create"] <= {200, 201, 404, 409} and statuses["delete"] <= {204, 404}, statuses
    assert len(http.get("/v1/sandboxes").json()["items"]) <= 1
    assert http.post("/v1/sandboxes", json=body).status_code in (200, 201)
    settled_fsck(instance)
