"""What the store has to take over from a node that is ahead of it. Called by the reconciler.

The node is ahead after an update whose end the server did not live to write, and after a restore of the database from an
older copy.
"""

from dataclasses import replace

from sandkeep.contracts.clock import Clock
from sandkeep.contracts.runner import Runner
from sandkeep.control.changes import as_on_node
from sandkeep.control.events import Events
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.domain.event import EventKind
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import Observed, OperationRef, SandboxOnNode
from sandkeep.domain.sandbox import TRANSITIONAL, Phase, Sandbox
from sandkeep.store import sandboxes as store


class Catchup:
    def __init__(self, events: Events, sandboxes: Sandboxes, runner: Runner, clock: Clock) -> None:
        self._events = events
        self._sandboxes = sandboxes
        self._runner = runner
        self._clock = clock

    async def sandbox(self, sandbox: Sandbox, observed: Observed) -> Sandbox:
        """As it is in the store afterwards."""
        if observed.phase is Phase.DELETED:
            return sandbox
        if observed.epoch <= sandbox.epoch:
            return await self._end_update(sandbox) if is_updating(sandbox) else sandbox
        async with self._sandboxes.turn(sandbox.id):
            found = await self._runner.show(sandbox.id)
            on_node = await self._runner.export_record(sandbox.id)
            if found is None or on_node is None or found.phase in TRANSITIONAL:
                return sandbox
            async with self._events.change() as ledger:
                current = await store.by_id(ledger.transaction, sandbox.id)
                if current is None:
                    return sandbox
                taken = taken_over(current, found, on_node, self._clock.now())
                if taken == current or not await store.save(ledger.transaction, taken, current.epoch):
                    return current
                if taken.spec != current.spec:
                    reason = "the node was ahead of the server"
                    await ledger.tell(EventKind.SANDBOX_UPDATED, current.project_id, sandbox.id, reason)
        self._sandboxes.endpoints.forget(sandbox.id)
        return taken

    async def _end_update(self, sandbox: Sandbox) -> Sandbox:
        """Whether it was done, the node knows. What the node says is told to it again under a newer epoch: behind an
        update that is still under way there, and ahead of a late one."""
        async with self._sandboxes.turn(sandbox.id):
            kept = await self._runner.export_record(sandbox.id)
            if kept is None:
                return sandbox
            async with self._events.change() as ledger:
                current = await store.by_id(ledger.transaction, sandbox.id)
                if current is None or current.epoch != sandbox.epoch or not is_updating(current):
                    return current or sandbox  # it was ended since it was looked at
                operation = OperationRef(new_id(IdKind.OPERATION), current.epoch + 1)
                fenced = replace(current, epoch=operation.epoch, operation=operation.id)
                await store.save(ledger.transaction, fenced, current.epoch)
            await self._runner.update(operation, sandbox.id, kept.spec.limits, kept.spec.lifetime, kept.spec.labels)
            settled = as_on_node(fenced, kept.spec, self._clock.now())
            async with self._events.change() as ledger:
                if await store.save(ledger.transaction, settled, fenced.epoch) and settled.spec != sandbox.spec:
                    await ledger.tell(EventKind.SANDBOX_UPDATED, sandbox.project_id, sandbox.id)
        return settled

    async def graces(self) -> None:
        """While no server listened, no client could be heard: those that are watched get their whole grace again."""
        now = self._clock.now()
        async with self._events.change() as ledger:
            for sandbox in await store.everywhere(ledger.transaction):
                lifetime, ends = sandbox.spec.lifetime, sandbox.expires_at
                if lifetime.grace is None or ends is None:
                    continue
                renewed = min(now + lifetime.grace, sandbox.created_at + (lifetime.ttl or float("inf")))
                if renewed > ends:
                    await store.save(ledger.transaction, replace(sandbox, expires_at=renewed), sandbox.epoch)


def is_updating(sandbox: Sandbox) -> bool:
    """An operation that is noted while the phase is settled is an update that nobody ended."""
    settled = sandbox.status.phase not in TRANSITIONAL and sandbox.status.phase is not Phase.NEW
    return sandbox.operation is not None and settled


def taken_over(current: Sandbox, observed: Observed, on_node: SandboxOnNode, now: float) -> Sandbox:
    """What the node does not keep (`pause_or_disk`) stays as it is. A lifetime that the store did not know counts from
    now: too long harms nobody. What is under way goes on: the phase is settled as always."""
    taken = replace(as_on_node(current, on_node.spec, now), epoch=max(current.epoch, observed.epoch))
    return replace(taken, operation=current.operation) if current.status.phase in TRANSITIONAL else taken
