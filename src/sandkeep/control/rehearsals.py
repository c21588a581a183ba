"""Rehearsals of archives: one is restored and compared, when somebody asks, and every now and then one that chance picks.

What is found is an event, a metric, and a condition of the sandbox until a later one finds it whole. Run by the reconciler, on
the monotonic clock; after a restart the first one comes soon, so that a server that restarts often rehearses, too.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from sandkeep.contracts.clock import Clock
from sandkeep.contracts.runner import Runner
from sandkeep.control.events import Events
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.control.snapshots import Snapshots
from sandkeep.domain.archive import Rehearsed
from sandkeep.domain.errors import SandkeepError
from sandkeep.domain.event import EventKind
from sandkeep.domain.sandbox import Condition, ConditionKind, Phase, Sandbox
from sandkeep.domain.snapshot import Snapshot, SnapshotPhase
from sandkeep.store import sandboxes as sandbox_store
from sandkeep.store import snapshots as snapshot_store
from sandkeep.telemetry import metrics
from sandkeep.telemetry.log import log

_SOON = 600.0
_LOOK = 5.0


class Rehearsals:
    def __init__(
        self,
        events: Events,
        sandboxes: Sandboxes,
        snapshots: Snapshots,
        runner: Runner,
        clock: Clock,
        every: float = 0.0,
        choose: Callable[[int], int] = random.randrange,
    ) -> None:
        """every: seconds, 0: only when asked. choose: one of so many."""
        self._events = events
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._runner = runner
        self._clock = clock
        self._every = every
        self._choose = choose

    async def run(self, connected: Callable[[], bool]) -> None:
        """Until cancelled. `connected`: to a node that is of this installation."""
        if not self._every:
            return
        due = self._clock.monotonic() + min(self._every, _SOON)
        while True:
            await self._clock.sleep(min(self._every, _LOOK))
            if self._clock.monotonic() < due or not connected():
                continue
            due = self._clock.monotonic() + self._every
            try:
                await self._any()
            except SandkeepError as error:
                log("task.failed", "warning", task="archive.rehearsal", error=error.message)

    async def _any(self) -> None:
        """Of those of which there is nothing but the archive."""
        sandboxes = {one.id: one for one in await self._sandboxes.everywhere()}
        async with self._events.change() as ledger:
            rows = await snapshot_store.everywhere(ledger.transaction)
        found: list[tuple[Sandbox, Snapshot | None]] = [
            (one, None) for one in sandboxes.values() if one.status.phase is Phase.ARCHIVED
        ]
        found += [
            (sandboxes[row.sandbox_id], row)
            for row in rows
            if row.archived is not None and row.phase is SnapshotPhase.READY and row.sandbox_id in sandboxes
        ]
        if found:
            await self._rehearse(*found[self._choose(len(found))])

    async def rehearse(self, project_id: str, reference: str, snapshot: str | None) -> Rehearsed:
        """Raises NotFound, Conflict for one without an archive; NoCapacity, Unavailable when it cannot be tried."""
        sandbox = await self._sandboxes.get(project_id, reference)
        found = await self._snapshots.get(project_id, sandbox.id, snapshot) if snapshot else None
        return await self._rehearse(sandbox, found)

    async def _rehearse(self, sandbox: Sandbox, snapshot: Snapshot | None) -> Rehearsed:
        try:
            found = await self._runner.rehearse(sandbox.id, snapshot.id if snapshot else None)
        except SandkeepError:
            metrics.REHEARSALS.labels("untried").inc()
            raise
        metrics.REHEARSALS.labels("intact" if found.intact else "damaged").inc()
        await self._note(sandbox, snapshot, found)
        return found

    async def _note(self, sandbox: Sandbox, snapshot: Snapshot | None, found: Rehearsed) -> None:
        what = f"snapshot {snapshot.name or snapshot.id}" if snapshot else "archive"
        kind = EventKind.ARCHIVE_REHEARSED if found.intact else EventKind.ARCHIVE_DAMAGED
        async with self._events.change() as ledger:
            current = await sandbox_store.by_id(ledger.transaction, sandbox.id)
            if current is None:
                return
            status, before = current.status, current.status.condition(ConditionKind.ARCHIVE_DAMAGED)
            if not found.intact:
                reason, now = f"{what}: {found.reason}", self._clock.now()
                status = status.with_condition(Condition(ConditionKind.ARCHIVE_DAMAGED, True, reason, now))
            elif before is not None and before.reason.startswith(f"{what}: "):
                status = status.without(ConditionKind.ARCHIVE_DAMAGED)
            if status is not current.status:
                await sandbox_store.save(ledger.transaction, replace(current, status=status), current.epoch)
            owner = current.project_id, current.id, found.reason
            await ledger.tell(kind, *owner, snapshot=snapshot.id if snapshot else None, seconds=round(found.seconds, 2))
