"""The timelines of sandboxes: set and shown, and what they let go of. Called by the doors, and by the schedule."""

from contextlib import suppress
from dataclasses import dataclass, replace

from sandkeep.contracts.clock import Clock
from sandkeep.contracts.runner import Runner
from sandkeep.control.changes import refuse_deleted
from sandkeep.control.events import Events
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.control.snapshots import Snapshots
from sandkeep.domain.errors import Busy, Conflict, NotFound, SandkeepError
from sandkeep.domain.event import EventKind
from sandkeep.domain.sandbox import Sandbox
from sandkeep.domain.snapshot import SnapshotPhase
from sandkeep.domain.timeline import SnapshotSizes, Timeline, Verdict, plan, total
from sandkeep.store import sandboxes as sandbox_store
from sandkeep.store import snapshots as snapshot_store
from sandkeep.telemetry.log import log


@dataclass(frozen=True)
class Pruning:
    """What stays and what goes (or went), oldest first. total: bytes that all of them hold, None while nobody knows."""

    verdicts: tuple[Verdict, ...]
    sizes: SnapshotSizes | None = None
    total: int | None = None


class Timelines:
    def __init__(
        self, events: Events, sandboxes: Sandboxes, snapshots: Snapshots, runner: Runner, clock: Clock
    ) -> None:
        self._events = events
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._runner = runner
        self._clock = clock

    async def set(self, project_id: str, reference: str, timeline: Timeline) -> Sandbox:
        """The node's record first, so that it lives with the sandbox. Raises InvalidArgument."""
        timeline.check()
        async with self._sandboxes.held(project_id, reference) as sandbox_id:
            sandbox = await self._sandboxes.get(project_id, sandbox_id)
            refuse_deleted(sandbox)
            async with self._events.change() as ledger:
                intent, operation = await self._sandboxes.intend(ledger, sandbox)
            await self._runner.set_timeline(operation, sandbox.id, timeline)
            spec = replace(intent.spec, timeline=timeline)
            updated = replace(intent, spec=spec, updated_at=self._clock.now(), operation=None)
            async with self._events.change() as ledger:
                if not await sandbox_store.save(ledger.transaction, updated, intent.epoch):
                    refuse_deleted(await sandbox_store.by_id(ledger.transaction, sandbox.id))
                    raise Conflict("it was changed meanwhile", hint="look again and retry")
                await ledger.tell(EventKind.SANDBOX_UPDATED, project_id, sandbox.id, "its timeline")
            return updated

    async def next_at(self, sandbox: Sandbox) -> float | None:
        """When the next one is due, seconds since the epoch, if its disk changes until then."""
        every = sandbox.spec.timeline.every
        if every is None:
            return None
        async with self._events.change() as ledger:
            newest = await snapshot_store.newest(ledger.transaction, [sandbox.id])
        _, last = newest.get(sandbox.id, (0, sandbox.created_at))
        return max(last + every, self._clock.now())

    async def plan(self, project_id: str, reference: str) -> Pruning:
        """What would go now. Changes nothing."""
        return await self._plan(await self._sandboxes.get(project_id, reference))

    async def prune(self, project_id: str, reference: str) -> Pruning:
        """What its rules keep no longer goes."""
        sandbox = await self._sandboxes.get(project_id, reference)
        planned = await self._plan(sandbox)
        gone = []
        try:
            for verdict in planned.verdicts:
                if not verdict.stays:
                    with suppress(NotFound):  # somebody deleted it meanwhile
                        await self._snapshots.delete(sandbox.project_id, sandbox.id, verdict.snapshot.id)
                        gone.append(verdict.snapshot.id)
        finally:
            if gone:
                log("timeline.pruned", sandbox=sandbox.id, count=len(gone))
                async with self._events.change() as ledger:
                    kind, reason = EventKind.SNAPSHOT_PRUNED, "its timeline keeps them no longer"
                    await ledger.tell(kind, sandbox.project_id, sandbox.id, reason, snapshots=gone)
        return planned

    async def _plan(self, sandbox: Sandbox) -> Pruning:
        async with self._events.change() as ledger:
            rows = await snapshot_store.of(ledger.transaction, sandbox.id)
            needed = await sandbox_store.being_forked(ledger.transaction)
        ready = [row for row in rows if row.phase is SnapshotPhase.READY]
        timeline = sandbox.spec.timeline
        sizes = await self._sizes(sandbox, fresh=timeline.budget is not None)
        shares = sizes.shares if sizes else ()
        ordered = [row.id for row in ready]
        return Pruning(
            tuple(plan(ready, timeline, self._clock.now(), shares, needed)),
            sizes,
            total(ordered, set(ordered), shares) if sizes else None,
        )

    async def _sizes(self, sandbox: Sandbox, *, fresh: bool) -> SnapshotSizes | None:
        """Of a budget without sizes nothing can be said: it then raises."""
        try:
            return await self._runner.snapshot_sizes(sandbox.id, fresh)
        except NotFound as error:
            if fresh:
                raise Busy("a snapshot of it goes just now", hint="try again in a moment", retry_after=1) from error
            return None
        except SandkeepError:
            if fresh:
                raise
            return None
