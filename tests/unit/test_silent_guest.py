"""A guest that stands still: the call ends, the sandbox says so, and says when it answers again."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from sandkeep.control import reach
from sandkeep.domain.errors import GuestUnreachable
from sandkeep.testing.platform import LocalPlatform

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "_SILENCE", 0.05)


class Stuck:
    """In the place of the guest's `exec`, `request` and `wait_ready`: nothing comes, and nobody answers."""

    def __init__(self, local: LocalPlatform, patched: pytest.MonkeyPatch) -> None:
        self.asked = anyio.Event()
        self._exec = local.guest.exec
        patched.setattr(local.guest, "exec", self.exec)
        patched.setattr(local.guest, "request", self.request)
        patched.setattr(local.guest, "wait_ready", self.wait_ready)

    async def exec(self, *_: Any) -> None:
        await anyio.sleep_forever()

    @asynccontextmanager
    async def request(self, *_: Any) -> AsyncIterator[None]:
        await anyio.sleep_forever()
        yield

    async def wait_ready(self, *_: Any) -> None:
        self.asked.set()
        raise GuestUnreachable("the agent at 10.0.0.1 does not answer")


async def made(local: LocalPlatform) -> str:
    return str((await local.http.post("/v1/sandboxes", json={"name": "dev", "persistence": "full"})).json()["id"])


async def ready(local: LocalPlatform) -> bool:
    shown = (await local.http.get("/v1/sandboxes/dev")).json()
    return bool({c["kind"]: c["value"] for c in shown["conditions"]}["GuestReady"])


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "exec"), ("GET", "files?path=/x"), ("POST", "agent/process.Process/Start")]
)
async def test_a_call_to_it_ends_and_says_what_to_do(
    local: LocalPlatform, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    await made(local)
    asked: dict[str, Any] = {"json": {"command": "true"}} if path == "exec" else {}
    with monkeypatch.context() as patched, anyio.fail_after(10):
        Stuck(local, patched)
        answer = await local.http.request(method, f"/v1/sandboxes/dev/{path}", **asked)
    assert (answer.status_code, answer.json()["code"]) == (502, "guest_unreachable")
    assert "sandkeep stop dev" in answer.json()["hint"]
    assert not await ready(local)
    why = (await local.http.get("/v1/sandboxes/dev/why")).json()
    assert any("GuestReady: its agent does not answer" in reason for reason in why["because"])
    assert (await local.http.post("/v1/sandboxes/dev/exec", json={"command": "echo on"})).status_code == 200
    assert await ready(local)


async def test_one_that_takes_no_connection_stands_still_too(
    local: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(local)
    silent = GuestUnreachable("the agent at 10.0.0.1 does not answer", silent=True)

    async def refuse(*_: Any) -> None:
        raise silent

    with monkeypatch.context() as patched:
        Stuck(local, patched)
        patched.setattr(local.guest, "exec", refuse)
        answer = await local.http.post("/v1/sandboxes/dev/exec", json={"command": "true"})
    assert (answer.status_code, answer.json()["hangs"]) == (502, True)
    assert not await ready(local)


async def test_the_next_server_hears_that_it_answers_again(
    local: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(local)
    with monkeypatch.context() as patched:
        Stuck(local, patched)
        await local.http.post("/v1/sandboxes/dev/exec", json={"command": "true"})
    await local.stop_server()
    await local.start_server()
    assert not await ready(local)
    assert (await local.http.post("/v1/sandboxes/dev/exec", json={"command": "echo on"})).status_code == 200
    assert await ready(local)


async def test_one_that_takes_its_time_is_waited_for(local: LocalPlatform) -> None:
    await made(local)
    answer = await local.http.post("/v1/sandboxes/dev/exec", json={"command": "sleep 0.4"})
    assert answer.status_code == 200
    assert await ready(local)


async def test_one_that_is_paused_is_waited_for(local: LocalPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream goes over a pause in memory; what is frozen answers nobody."""
    await made(local)
    ended: list[Any] = []

    async def call() -> None:
        ended.append(await local.http.post("/v1/sandboxes/dev/exec", json={"command": "true"}))

    async with anyio.create_task_group() as tasks:
        with monkeypatch.context() as patched:
            stuck = Stuck(local, patched)
            tasks.start_soon(call)
            paused = await local.http.post("/v1/sandboxes/dev/pause", json={"hold": "memory"})
            assert paused.json()["phase"] == "paused"
            asked = stuck.asked = anyio.Event()
            with anyio.move_on_after(0.5):
                await asked.wait()
            assert not asked.is_set()
        assert ended == []
        assert await ready(local)
        tasks.cancel_scope.cancel()
