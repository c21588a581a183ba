"""Taking turns: so many at once, and among those that wait one of each caller after the other, not first come first served."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio


class _Waiting:
    def __init__(self) -> None:
        self.called = anyio.Event()
        self.has_turn = False


class Turns:
    """A caller with a hundred in the queue delays the single one of another by one turn."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._queues: dict[str, deque[_Waiting]] = {}  # in the order in which the callers are served

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[None]:
        """The body runs when it is this caller's turn."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(caller)
        try:
            yield
        finally:
            self._next()

    async def _wait(self, caller: str) -> None:
        waiting = _Waiting()
        self._queues.setdefault(caller, deque()).append(waiting)
        try:
            await waiting.called.wait()
        except BaseException:
            if waiting.has_turn:
                self._next()
            else:
                queue = self._queues[caller]
                queue.remove(waiting)
                if not queue:
                    del self._queues[caller]
            raise

    def _next(self) -> None:
        if not self._queues:
            self._free += 1
            return
        caller = next(iter(self._queues))
        queue = self._queues.pop(caller)
        waiting = queue.popleft()
        if queue:
            self._queues[caller] = queue
        waiting.has_turn = True
        waiting.called.set()

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())
