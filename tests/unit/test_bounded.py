"""Nothing that the daemons remember of a sandbox outlives it, whatever its life was like."""

import random
from typing import Any

import anyio
import pytest

from sandkeep.domain.errors import NoCapacity, PauseFailed
from sandkeep.domain.sandbox import RuntimeKind
from sandkeep.testing.platform import LocalPlatform

pytestmark = pytest.mark.anyio

CYCLES = 60


def remembered(local: LocalPlatform) -> dict[str, int]:
    """Sizes of what server and runner keep by id."""
    control, node, reconciler = local.services.sandboxes, local.node, local.services.reconciler
    return {
        "locks": len(control._locks),
        "deleting": len(control._deleting),
        "endpoints": len(control.endpoints._reached),
        "addresses": len(control.endpoints._addresses),
        "late": len(reconciler._late),
        "lanes": len(node._lanes),
        "watched": len(node._exits.watched),
        "watchers": len(node._exits.watchers),
        "erasing": len(node._tombstones._erasing),
        "facts": len(local.parts.feed._facts),
        "journal": len(list((local.folder / "node" / "journal").glob("*.journal"))),
    }


async def ask(local: LocalPlatform, url: str) -> None:
    answer = await local.http.post(url, json={"command": "true"} if url.endswith("exec") else {})
    assert answer.status_code != 500, answer.text


async def life(local: LocalPlatform, chance: random.Random) -> None:
    """One sandbox from its creation, which may fail, to its end."""
    url = "/v1/sandboxes"
    runtime = local.runtimes[RuntimeKind.GVISOR]
    ephemeral = chance.random() < 0.3
    if chance.random() < 0.2:
        runtime.fail_next("boot", NoCapacity("no room"))
    headers = {"idempotency-key": f"k{chance.random()}"}
    fields: dict[str, Any] = {"persistence": "ephemeral" if ephemeral else "full"}
    made = await local.http.post(url, json=fields, headers=headers)
    if made.status_code != 201:
        assert made.status_code == 507, made.text
        return
    home = f"{url}/{made.json()['id']}"
    for _ in range(chance.randrange(4)):
        verb = chance.choice(["pause", "resume", "stop", "start", "exec"])
        if verb == "pause" and chance.random() < 0.5:
            runtime.fail_next("save", PauseFailed("a deleted file is open"))
        await ask(local, f"{home}/{verb}")
    async with anyio.create_task_group() as tasks:  # some of them come too late
        for verb in ("exec", "stop", "start"):
            if chance.random() < 0.5:
                tasks.start_soon(ask, local, f"{home}/{verb}")
        tasks.start_soon(lambda: local.http.delete(home))


async def test_many_lives_leave_nothing_behind(local: LocalPlatform) -> None:
    chance = random.Random(7)
    before = remembered(local)
    for _ in range(CYCLES):
        await life(local, chance)
    assert (await local.http.get("/v1/sandboxes")).json()["items"] == []
    assert remembered(local) == before


async def test_a_pause_that_fails_again_and_again_is_watched_once(local: LocalPlatform) -> None:
    sandbox = (await local.http.post("/v1/sandboxes", json={"persistence": "full"})).json()
    for _ in range(20):
        local.runtimes[RuntimeKind.GVISOR].fail_next("save", PauseFailed("a deleted file is open"))
        answer = await local.http.post(f"/v1/sandboxes/{sandbox['id']}/pause")
        assert answer.json()["code"] == "pause_failed"
    assert len(local.node._exits.watchers) == 1
