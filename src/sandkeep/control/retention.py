"""What the server keeps by rule, not for ever: events and idempotency keys. Small steps, so that requests go between them."""

from dataclasses import dataclass

import anyio

from sandkeep.contracts.clock import Clock
from sandkeep.control.events import Events
from sandkeep.domain.errors import SandkeepError
from sandkeep.store import events as event_store
from sandkeep.store import idempotency as idempotency_store
from sandkeep.telemetry.log import log

_EVERY = 15.0
_STEP = 500
_PAUSE = 0.05


@dataclass(frozen=True)
class Kept:
    """Events go when they are older, or more, than this. The last one stays: the next number follows from it."""

    event_days: float = 90.0
    event_count: int = 1_000_000


class Retention:
    """Run by the reconciler."""

    def __init__(self, events: Events, clock: Clock, kept: Kept) -> None:
        self._events = events
        self._clock = clock
        self._kept = kept

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._clock.sleep(_EVERY)
            try:
                async with self._events.change() as ledger:
                    await idempotency_store.forget(ledger.transaction, self._clock.now() - idempotency_store.KEPT)
                while await self.step() == _STEP:
                    await anyio.sleep(_PAUSE)
            except SandkeepError as error:  # the database is away
                log("reconcile.failed", "warning", error=error.message)

    async def step(self) -> int:
        """Removes some events; how many."""
        before = self._clock.now() - self._kept.event_days * 86400
        async with self._events.change() as ledger:
            return await event_store.prune(
                ledger.transaction, before=before, count=self._kept.event_count, at_most=_STEP
            )
