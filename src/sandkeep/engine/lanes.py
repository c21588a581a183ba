"""One lane per sandbox: one operation at a time, in the order they came; a delete cuts in."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio

from sandkeep.domain.errors import Busy, NotFound
from sandkeep.domain.sandbox import Phase

_DELETE_PATIENCE = 20.0


class Lane:
    def __init__(self) -> None:
        self._lock = anyio.Lock()
        self._scope: anyio.CancelScope | None = None
        self.phase: Phase | None = None
        self.deleting = False
        self.users = 0

    @property
    def busy(self) -> bool:
        return self.deleting or self._lock.locked()

    @asynccontextmanager
    async def operate(self, sandbox_id: str, phase: Phase | None, deadline: float) -> AsyncIterator[None]:
        """Raises NotFound when it is being deleted, also when that begins while the body runs."""
        async with self._lock:
            if self.deleting:
                raise NotFound(f"sandbox {sandbox_id} is being deleted")
            with anyio.CancelScope(deadline=anyio.current_time() + deadline) as scope:
                self._scope, self.phase = scope, phase
                try:
                    yield
                finally:
                    self._scope = self.phase = None
            if scope.cancelled_caught:
                if self.deleting:
                    raise NotFound(f"sandbox {sandbox_id} is being deleted")
                raise Busy(
                    f"{phase or 'the change'} did not finish within {deadline:g} s and was undone",
                    hint="look at the node's log and try again",
                    retry_after=5,
                )

    @asynccontextmanager
    async def cut_in(self) -> AsyncIterator[None]:
        """For delete: cancel what is under way and wait (for a bounded time) until it has undone itself."""
        self.deleting, self.phase = True, Phase.DELETING
        if self._scope:
            self._scope.cancel()
        held = False
        with anyio.move_on_after(_DELETE_PATIENCE):
            await self._lock.acquire()
            held = True
        try:
            yield
        except BaseException:
            self.deleting, self.phase = False, None
            raise
        finally:
            if held:
                self._lock.release()


class Lanes:
    """A lane is kept while somebody is in it or waits for it, and from a delete until what it deleted is erased."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}

    @asynccontextmanager
    async def operate(self, sandbox_id: str, phase: Phase | None, deadline: float) -> AsyncIterator[None]:
        """As Lane.operate."""
        with self._used(sandbox_id) as lane:
            async with lane.operate(sandbox_id, phase, deadline):
                yield

    @asynccontextmanager
    async def cut_in(self, sandbox_id: str) -> AsyncIterator[None]:
        """As Lane.cut_in; `forget` it when nothing is left of the sandbox."""
        with self._used(sandbox_id) as lane:
            async with lane.cut_in():
                yield

    @contextmanager
    def _used(self, sandbox_id: str) -> Iterator[Lane]:
        lane = self._lanes.setdefault(sandbox_id, Lane())
        lane.users += 1
        try:
            yield lane
        finally:
            lane.users -= 1
            if not lane.users and not lane.deleting and self._lanes.get(sandbox_id) is lane:
                del self._lanes[sandbox_id]

    def phase(self, sandbox_id: str) -> Phase | None:
        lane = self._lanes.get(sandbox_id)
        return lane.phase if lane else None

    def busy(self, sandbox_id: str) -> bool:
        """Whether anything is under way, also what has no phase."""
        lane = self._lanes.get(sandbox_id)
        return lane is not None and lane.busy

    def forget(self, sandbox_id: str) -> None:
        self._lanes.pop(sandbox_id, None)

    def __len__(self) -> int:
        return len(self._lanes)
