"""Starts again what ended by itself, when its time has come. What is planned is in the store; here are only the clocks.

Times are measured on the monotonic clock from the moment at which this server first saw the plan, and never for longer
than the rule's own wait. So a wall clock that jumps while the server runs changes nothing, and one that jumped while it
was down costs at most that wait. How long a sandbox has run is counted from a restart of the server anew.
"""

from collections.abc import Callable
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from sandkeep.contracts.clock import Clock
from sandkeep.control import settlement
from sandkeep.control.events import Events
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.domain.errors import SandkeepError
from sandkeep.domain.restart import FORGOTTEN_AFTER, Restarts
from sandkeep.domain.sandbox import Phase, Sandbox
from sandkeep.store import sandboxes as store
from sandkeep.telemetry.log import log

_TICK = 1.0
_AT_ONCE = 4
"""After a reboot of the host all of them want to start."""


@dataclass(frozen=True)
class _Timer:
    plan: tuple[Phase, float, Restarts]
    ends: float


class Restarter:
    """Run by the reconciler."""

    def __init__(self, events: Events, sandboxes: Sandboxes, clock: Clock, connected: Callable[[], bool]) -> None:
        self._events = events
        self._sandboxes = sandboxes
        self._clock = clock
        self._connected = connected
        self._timers: dict[str, _Timer] = {}
        self._under_way: set[str] = set()
        self._turns = anyio.CapacityLimiter(_AT_ONCE)

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            while True:
                await self._clock.sleep(_TICK)
                if not self._connected():
                    continue
                try:
                    await self._look(tasks)
                except SandkeepError as error:  # the database is away
                    log("reconcile.failed", "warning", error=error.message)

    async def _look(self, tasks: TaskGroup) -> None:
        timers = {}
        async with self._events.change() as ledger:
            failing = await store.failing(ledger.transaction)
        for sandbox in failing:
            timer = self._timer(sandbox)
            if timer is None:
                continue
            timers[sandbox.id] = timer
            if self._clock.monotonic() < timer.ends or sandbox.id in self._under_way:
                continue
            if sandbox.status.phase is Phase.RUNNING:
                await self._forget_failures(sandbox)
            else:
                self._under_way.add(sandbox.id)
                tasks.start_soon(self._start, sandbox)
        self._timers = timers

    def _timer(self, sandbox: Sandbox) -> _Timer | None:
        """The one that it has, unless what is planned has changed."""
        status, restarts = sandbox.status, sandbox.restarts
        plan = (status.phase, status.since, restarts)
        known = self._timers.get(sandbox.id)
        if known is not None and known.plan == plan:
            return known
        if status.phase is Phase.RUNNING:
            return _Timer(plan, self._clock.monotonic() + FORGOTTEN_AFTER)
        if status.phase is Phase.STOPPED and restarts.next_at is not None:
            return _Timer(plan, self._clock.monotonic() + restarts.wait(self._clock.now()))
        return None

    async def _forget_failures(self, seen: Sandbox) -> None:
        """It has run for long enough."""
        async with self._events.change() as ledger:
            current = await store.by_id(ledger.transaction, seen.id)
            if current and (current.epoch, current.status) == (seen.epoch, seen.status):
                await store.save(ledger.transaction, settlement.forgotten(current), seen.epoch)

    async def _start(self, sandbox: Sandbox) -> None:
        try:
            async with self._turns:
                await self._sandboxes.start_again(sandbox)
        except SandkeepError as error:
            log("restart.failed", "warning", sandbox=sandbox.id, error=error.message)
        finally:
            self._under_way.discard(sandbox.id)
