"""The platform on the fakes, for tests of logic: what is asked of it, and the death of its node at any step that it journals."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from sandkeep.engine.journal import Entry
from sandkeep.testing.platform import LocalPlatform


async def call(local: LocalPlatform, method: str, path: str, status: int = 200, **body: Any) -> Any:
    """Of /v1/sandboxes; the answer."""
    answer = await local.http.request(method, f"/v1/sandboxes{path}", json=body or None)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


@dataclass
class Death:
    reached: bool = False


@contextmanager
def dies_at(number: int, node: LocalPlatform, monkeypatch: pytest.MonkeyPatch) -> Iterator[Death]:
    """At its `number`-th step (from 1) in the block, which ends by then or a few seconds later."""
    step, death, seen = Entry.step, Death(), 0

    def killed(self: Entry, name: str, **facts: Any) -> None:
        nonlocal seen
        seen += 1
        step(self, name, **facts)
        if seen == number:
            death.reached = True
            node._node_scope.cancel()  # type: ignore[union-attr]
            raise anyio.get_cancelled_exc_class()

    with monkeypatch.context() as patch:
        patch.setattr(Entry, "step", killed)
        with anyio.move_on_after(5):
            yield death
