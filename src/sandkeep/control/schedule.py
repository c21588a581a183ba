"""Makes the snapshots that timelines ask for, when they are due, and lets their retention follow. Run by the reconciler.

What is due is computed from the rows: so long after the newest snapshot (or the sandbox's creation). Waiting is done on the
monotonic clock, from the moment at which this server first saw that row, and never for longer than the schedule's own time:
a wall clock that jumps while it runs changes nothing, and one that jumped while it was down brings one snapshot at most.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from sandkeep.contracts.clock import Clock
from sandkeep.contracts.runner import Runner
from sandkeep.control.events import Events
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.control.snapshots import Snapshots
from sandkeep.control.timelines import Timelines
from sandkeep.domain.errors import Busy, NoCapacity, PauseFailed, SandkeepError, Unsupported
from sandkeep.domain.sandbox import TRANSITIONAL, Phase, Sandbox
from sandkeep.domain.snapshot import Cause, SnapshotKind
from sandkeep.domain.timeline import Timeline
from sandkeep.domain.why import is_lost
from sandkeep.lib.retry import delays
from sandkeep.store import sandboxes as sandbox_store
from sandkeep.store import snapshots as snapshot_store
from sandkeep.telemetry.log import log

_TICK = 1.0
_AT_ONCE = 2
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 3600.0
_EXPECTED = 5.0
_PRUNE_EVERY = 300.0
"""Seconds: some rules let go as time passes."""


@dataclass
class _Timer:
    """since: the row that it counts from; ends: on the monotonic clock."""

    since: tuple[float, float]
    ends: float
    waits: Iterator[float] = field(default_factory=lambda: delays(_FIRST_WAIT, cap=_LONGEST_WAIT))


@dataclass(frozen=True)
class _Seen:
    """What retention went by when it passed last."""

    snapshots: tuple[int, float]
    timeline: Timeline
    at: float


class Schedule:
    def __init__(
        self,
        events: Events,
        sandboxes: Sandboxes,
        snapshots: Snapshots,
        timelines: Timelines,
        runner: Runner,
        clock: Clock,
        connected: Callable[[], bool],
    ) -> None:
        """`connected`: to a node that is of this installation."""
        self._events = events
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._timelines = timelines
        self._runner = runner
        self._clock = clock
        self._connected = connected
        self._timers: dict[str, _Timer] = {}
        self._pruned: dict[str, _Seen] = {}
        self._phases: dict[str, float] = {}
        self._expecting = 0.0
        self._under_way: set[str] = set()
        self._turns = anyio.CapacityLimiter(_AT_ONCE)

    async def run(self) -> None:
        """Until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                await self._clock.sleep(_TICK)
                if not self._connected():
                    continue
                try:
                    await self._look(tasks)
                except SandkeepError as error:  # the database is away
                    log("reconcile.failed", "warning", what="timelines", error=error.message)

    async def _look(self, tasks: TaskGroup) -> None:
        async with self._events.change() as ledger:
            ruled = {one.id: one for one in await sandbox_store.with_timeline(ledger.transaction)}
            newest = await snapshot_store.newest(ledger.transaction, list(ruled)) if ruled else {}
        self._timers = {key: timer for key, timer in self._timers.items() if key in ruled}
        self._pruned = {key: seen for key, seen in self._pruned.items() if key in ruled}
        await self._take_over(ruled)
        for sandbox in ruled.values():
            if sandbox.id in self._under_way or self._sandboxes.busy(sandbox.id) or not _settled(sandbox):
                continue  # with the next tick: who waits here would keep others waiting
            snapshots = newest.get(sandbox.id, (0, sandbox.created_at))
            if self._due(sandbox, snapshots[1]):
                self._begin(tasks, self._make, sandbox)
            elif sandbox.spec.timeline.prunes and self._to_prune(sandbox, snapshots):
                self._begin(tasks, self._prune, sandbox)

    def _begin(self, tasks: TaskGroup, work: Callable[[Sandbox], Awaitable[None]], sandbox: Sandbox) -> None:
        """One thing at a time of a sandbox."""

        async def body() -> None:
            try:
                async with self._turns:
                    await work(sandbox)
            finally:
                self._under_way.discard(sandbox.id)

        self._under_way.add(sandbox.id)
        tasks.start_soon(body)

    # -- what the node made by itself

    def expect(self) -> None:
        """It makes one just now."""
        self._expecting = self._clock.monotonic() + _EXPECTED

    async def _take_over(self, ruled: dict[str, Sandbox]) -> None:
        """At once, and not with the next comparison. Whatever phase follows an end: it may run again by now."""
        settled = [one for one in ruled.values() if _settled(one) and one.spec.timeline.at_ends]
        phases = {one.id: one.status.since for one in settled}
        news, self._phases = phases.items() - self._phases.items(), phases
        if news or self._clock.monotonic() < self._expecting:
            await self._snapshots.reconcile(paired=True)

    # -- what is due

    def _due(self, sandbox: Sandbox, last: float) -> bool:
        every = sandbox.spec.timeline.every
        if every is None:
            self._timers.pop(sandbox.id, None)
            return False
        timer = self._timers.get(sandbox.id)
        if timer is None or timer.since != (every, last):
            wait = min(max(0.0, last + every - self._clock.now()), every)
            timer = self._timers[sandbox.id] = _Timer((every, last), self._clock.monotonic() + wait)
        return self._clock.monotonic() >= timer.ends

    async def _make(self, sandbox: Sandbox) -> None:
        timer = self._timers.get(sandbox.id)
        if timer is None:  # its timeline was turned off while this waited
            return
        try:
            if not await self._with_memory(sandbox) and await self._runner.changed(sandbox.id):
                await self._snapshots.create(sandbox.project_id, sandbox.id, reason="on schedule", cause=Cause.SCHEDULE)
            timer.ends = self._clock.monotonic() + (sandbox.spec.timeline.every or _LONGEST_WAIT)
            timer.waits = delays(_FIRST_WAIT, cap=_LONGEST_WAIT)
        except Busy:
            pass  # something else is under way: with the next tick
        except SandkeepError as error:
            wait = next(timer.waits)
            timer.ends = self._clock.monotonic() + wait
            log("timeline.failed", "warning", sandbox=sandbox.id, error=error.message, again_in=round(wait))

    async def _with_memory(self, sandbox: Sandbox) -> bool:
        """Of what runs, if its owner wants it so; memory that runs has always changed. Where it cannot be kept, the disk is."""
        if sandbox.spec.timeline.kind is not SnapshotKind.FULL or sandbox.status.phase is not Phase.RUNNING:
            return False
        try:
            await self._snapshots.create(
                sandbox.project_id,
                sandbox.id,
                kind=SnapshotKind.FULL,
                reason="on schedule",
                cause=Cause.SCHEDULE,
            )
        except (PauseFailed, Unsupported, NoCapacity) as error:
            log("timeline.failed", "warning", sandbox=sandbox.id, what="memory", error=error.message)
            return False
        return True

    # -- what goes

    def _to_prune(self, sandbox: Sandbox, snapshots: tuple[int, float]) -> bool:
        now, seen = self._clock.monotonic(), self._pruned.get(sandbox.id)
        fresh = _Seen(snapshots, sandbox.spec.timeline, now)
        if seen and (seen.snapshots, seen.timeline) == (snapshots, fresh.timeline) and now - seen.at < _PRUNE_EVERY:
            return False
        self._pruned[sandbox.id] = fresh
        return True

    async def _prune(self, sandbox: Sandbox) -> None:
        try:
            await self._timelines.prune(sandbox.project_id, sandbox.id)
        except Busy:
            self._pruned.pop(sandbox.id, None)
        except SandkeepError as error:
            log("timeline.failed", "warning", sandbox=sandbox.id, error=error.message)


def _settled(sandbox: Sandbox) -> bool:
    phase = sandbox.status.phase
    return phase is not Phase.NEW and phase not in TRANSITIONAL and not is_lost(sandbox)
