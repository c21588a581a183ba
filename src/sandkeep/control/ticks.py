"""Whether the time that the server lives by is to be trusted: a wall clock that was set, a process that was frozen.

Lifetimes are kept by the wall clock, since they outlive the server. What passes by neither a day's wait nor a client's
silence ends none of them.
"""

from dataclasses import dataclass, replace

from sandkeep.contracts.clock import Clock
from sandkeep.control import settlement
from sandkeep.control.events import Events
from sandkeep.domain.event import EventKind
from sandkeep.domain.sandbox import Sandbox
from sandkeep.store import sandboxes as store

_TOLERATED = 5.0
"""Seconds: a slow tick, or the small steps of a time server."""


@dataclass(frozen=True)
class Tick:
    """now: seconds since the epoch. jumped: how far the wall clock was set ahead since the last tick; frozen: how long
    this process did not run. 0 for what is usual."""

    now: float
    jumped: float = 0.0
    frozen: float = 0.0


class Ticks:
    def __init__(self, clock: Clock, every: float) -> None:
        self._clock = clock
        self._every = every
        self._last = (clock.now(), clock.monotonic())

    async def next(self) -> Tick:
        await self._clock.sleep(self._every)
        now, monotonic = self._clock.now(), self._clock.monotonic()
        wall, real = now - self._last[0], monotonic - self._last[1]
        self._last = now, monotonic
        jumped, frozen = wall - real, real - self._every
        return Tick(now, jumped if jumped > _TOLERATED else 0.0, frozen if frozen > _TOLERATED else 0.0)


async def expired(events: Events, tick: Tick) -> list[Sandbox]:
    """Those whose lifetime ended."""
    async with events.change() as ledger:
        return await store.expired(ledger.transaction, tick.now)


async def clear_expiry(events: Events, seen: Sandbox) -> None:
    """What its rule says was done; what runs no more is not started again either. A lifetime that was changed
    meanwhile stays."""
    async with events.change() as ledger:
        sandbox = await store.by_id(ledger.transaction, seen.id)
        if sandbox is not None and sandbox.expires_at == seen.expires_at:
            after = replace(settlement.forgotten(sandbox), expires_at=None)
            await store.save(ledger.transaction, after, sandbox.epoch)
            await ledger.tell(EventKind.SANDBOX_EXPIRED, sandbox.project_id, sandbox.id, "its lifetime ended")


async def postpone(events: Events, tick: Tick) -> None:
    """A clock that was set ahead ends no lifetime; heartbeats that nobody could take are no silence. (One that was set back
    only makes lifetimes longer.)"""
    async with events.change() as ledger:
        for sandbox in await store.expiring(ledger.transaction):
            later = tick.jumped if sandbox.updated_at < tick.now - tick.jumped / 2 else 0.0
            if sandbox.spec.lifetime.grace is not None:
                later += tick.frozen
            if later and sandbox.expires_at is not None:
                moved = replace(sandbox, expires_at=sandbox.expires_at + later)
                await store.save(ledger.transaction, moved, sandbox.epoch)
