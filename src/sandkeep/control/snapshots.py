"""Snapshots: points in time of a sandbox that its owner keeps, goes back to, and makes others from.

The row comes first, then the node is asked. Each is a change of its sandbox, under its turn and with an epoch of its own,
so that a call that comes late is refused like any other.
"""

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from sandkeep.contracts.clock import Clock
from sandkeep.contracts.guest import Guest
from sandkeep.contracts.runner import Runner
from sandkeep.control.changes import refuse_deleted
from sandkeep.control.creation import made_before
from sandkeep.control.events import Events, Ledger
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.domain.archive import snapshot_is_away
from sandkeep.domain.errors import (
    Busy,
    Conflict,
    NoCapacity,
    NotFound,
    PauseFailed,
    QuotaExceeded,
    SandkeepError,
    Unavailable,
    Unsupported,
)
from sandkeep.domain.event import EventKind
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import Observed, OperationRef, SnapshotOnNode
from sandkeep.domain.sandbox import TRANSITIONAL, Commit, Persistence, Phase, Sandbox
from sandkeep.domain.snapshot import MOST, Cause, Snapshot, SnapshotKind, SnapshotPhase, check
from sandkeep.domain.timeline import SnapshotSizes
from sandkeep.domain.why import is_lost
from sandkeep.store import idempotency as idempotency_store
from sandkeep.store import sandboxes as sandbox_store
from sandkeep.store import snapshots as store
from sandkeep.telemetry.log import log


class Snapshots:
    def __init__(self, events: Events, sandboxes: Sandboxes, runner: Runner, guest: Guest, clock: Clock) -> None:
        self._events = events
        self._sandboxes = sandboxes
        self._runner = runner
        self._guest = guest
        self._clock = clock

    # -- looking

    async def page(self, project_id: str, reference: str) -> list[Snapshot]:
        """Of one sandbox, oldest first; those that are ready."""
        sandbox = await self._sandboxes.get(project_id, reference)
        if sandbox.spec.timeline.at_ends:  # what the node has made by itself a moment ago is among them
            with suppress(SandkeepError):
                await self.reconcile(paired=False)
        async with self._events.change() as ledger:
            found = await store.of(ledger.transaction, sandbox.id)
        return [snapshot for snapshot in found if snapshot.phase is SnapshotPhase.READY]

    async def get(self, project_id: str, reference: str, snapshot: str) -> Snapshot:
        """`snapshot`: name or id. Raises NotFound, Busy while it is being made."""
        sandbox = await self._sandboxes.get(project_id, reference)
        async with self._events.change() as ledger:
            return await _ready(ledger, sandbox, snapshot)

    async def sizes(self, sandbox_id: str) -> SnapshotSizes | None:
        """As the node computed them last; None while it has not, or is away."""
        with suppress(SandkeepError):
            return await self._runner.snapshot_sizes(sandbox_id, False)
        return None

    # -- making and deleting

    async def create(
        self,
        project_id: str,
        reference: str,
        *,
        kind: SnapshotKind = SnapshotKind.DISK,
        name: str | None = None,
        tags: tuple[str, ...] = (),
        reason: str = "asked for",
        cause: Cause = Cause.ASKED,
        key: str | None = None,
        commit: bool = False,
        of: Snapshot | None = None,
        asked: str | None = None,
    ) -> Snapshot:
        """Of a sandbox in any settled phase; what runs runs on. `key`: the idempotency key; `commit`: the next sessions of it
        start from there; `of`: another sandbox's, which becomes one of this one, too. `asked`: the request that the key belongs
        to, where its kind follows from the phase: what was kept for it at the first try counts, whatever the phase is now."""
        check(name, tags)
        whole = asked or json.dumps([reference, kind, name, tags, commit])
        fingerprint = hashlib.sha256(whole.encode()).hexdigest()
        async with self.turn(project_id, reference) as sandbox:
            async with self._events.change() as ledger:
                if key and (before := await made_before(ledger.transaction, project_id, key, fingerprint)):
                    return await _ready(ledger, sandbox, before)
                if await store.count(ledger.transaction, sandbox.id) >= MOST:
                    raise QuotaExceeded(
                        f"the sandbox has {MOST} snapshots", hint="delete some that are not needed", limit=MOST
                    )
                snapshot = Snapshot(
                    id=new_id(IdKind.SNAPSHOT),
                    project_id=project_id,
                    sandbox_id=sandbox.id,
                    name=name,
                    kind=kind,
                    tags=tags,
                    parent=None,
                    phase=SnapshotPhase.MAKING,
                    reason=reason,
                    created_at=self._clock.now(),
                    cause=cause,
                )
                await store.add(ledger.transaction, snapshot)
                if key:
                    await idempotency_store.add(
                        ledger.transaction, project_id, key, fingerprint, snapshot.id, snapshot.created_at
                    )
                intent, operation = await self._sandboxes.intend(ledger, sandbox)
            if kind is SnapshotKind.FULL and sandbox.status.phase is Phase.RUNNING and of is None:
                with suppress(SandkeepError):  # a save resets its connections: better now than in the middle of a call
                    await self._guest.hang_up((await self._runner.endpoint(sandbox.id)).address)
            try:
                if of is not None:
                    from_there = of.sandbox_id, of.id
                    made = await self._runner.adopt_snapshot(operation, sandbox.id, _as_on_node(snapshot), *from_there)
                else:
                    made = await self._runner.snapshot(operation, sandbox.id, _as_on_node(snapshot), commit)
            except Unavailable:
                raise  # the node is away: it is settled when that is back
            except NotFound:
                if await self._runner.show(sandbox.id) is None:
                    await self._give_up(snapshot, "the node has no record of the sandbox", intent)
                raise
            except SandkeepError as error:
                await self._give_up(snapshot, error.message, intent)
                raise
            return await self._settle(snapshot, made, intent)

    async def commit(self, project_id: str, reference: str, name: str | None, key: str | None) -> Snapshot:
        """The disk as it is now is where its next sessions start, and a snapshot. Raises Conflict, Unsupported."""
        sandbox = await self._sandboxes.get(project_id, reference)
        called = sandbox.name or sandbox.id
        if sandbox.spec.commit is None:
            raise Unsupported(
                f"persistence={sandbox.spec.persistence} keeps the disk as it is: there is nothing to commit",
                hint=f"sandkeep snapshot create {called}",
                field="persistence",
            )
        if sandbox.spec.commit is Commit.NEVER:
            raise Conflict(
                "it was made with commit=never: each session starts from the same point",
                hint=f"keep this moment beside it: sandkeep snapshot create {called}",
                field="commit",
            )
        return await self.create(project_id, sandbox.id, name=name, reason="committed", key=key, commit=True)

    async def delete(self, project_id: str, reference: str, snapshot: str) -> None:
        """Those that came from it stay whole. Raises NotFound."""
        async with self.turn(project_id, reference) as sandbox:
            async with self._events.change() as ledger:
                found = await _ready(ledger, sandbox, snapshot)
                found = replace(found, phase=SnapshotPhase.DELETING)
                await store.save(ledger.transaction, found)
                intent, operation = await self._sandboxes.intend(ledger, sandbox)
            await self._finish_delete(found, intent, operation)

    async def _finish_delete(self, snapshot: Snapshot, intent: Sandbox, operation: OperationRef) -> None:
        try:
            await self._runner.delete_snapshot(operation, snapshot.sandbox_id, snapshot.id)
        except Unavailable as error:
            if error.details.get("part") == "store":  # its archive is tried again with the next comparison
                async with self._events.change() as ledger:
                    await self.end(ledger, intent)
            raise
        async with self._events.change() as ledger:
            await self.end(ledger, intent)
            await store.give_children_away(ledger.transaction, snapshot)
            if await store.remove(ledger.transaction, snapshot.id):
                await idempotency_store.remove(ledger.transaction, snapshot.id)
                await _tell(ledger, EventKind.SNAPSHOT_DELETED, snapshot)

    # -- going back

    async def rollback(
        self, project_id: str, reference: str, snapshot: str, *, kind: SnapshotKind | None, keep_before: bool
    ) -> Sandbox:
        """In place, under the same identity: running again when it ran, else stopped, or paused at that moment. `kind`: None:
        all that the snapshot has."""
        target = await self.get(project_id, reference, snapshot)
        sandbox = await self._sandboxes.get(project_id, target.sandbox_id)
        if sandbox.spec.persistence is Persistence.EPHEMERAL:
            raise Unsupported(
                "a rollback ends the machine, and with it an ephemeral sandbox would be gone",
                hint=f"make another from that moment: sandkeep fork {sandbox.name or sandbox.id}@{target.name or target.id}",
                field="persistence",
            )
        refuse_archived(sandbox, target)
        called = target.name or target.id
        memory = target.kind is SnapshotKind.FULL and kind is not SnapshotKind.DISK
        if kind is SnapshotKind.FULL and not memory:
            raise Conflict(f"the snapshot {called} has no memory", hint="leave out the kind", field="kind")
        if keep_before:
            await self.keep_before(sandbox, memory, f"before the rollback to {called}", Cause.ROLLBACK)

        async def act(sandbox: Sandbox, operation: OperationRef) -> Observed:
            self._sandboxes.endpoints.forget(sandbox.id)
            try:
                return await self._runner.rollback(operation, sandbox.id, target.id, memory)
            finally:
                self._sandboxes.endpoints.forget(sandbox.id)  # it has another machine

        return await self._sandboxes.change(
            project_id,
            target.sandbox_id,
            Phase.STARTING,
            EventKind.SANDBOX_STARTING,
            EventKind.SANDBOX_ROLLED_BACK,
            lambda _: False,
            act,
        )

    async def keep_before(
        self,
        sandbox: Sandbox,
        memory: bool,
        reason: str,
        cause: Cause,
        key: str | None = None,
        asked: str | None = None,
    ) -> Snapshot:
        """`memory`: too, if there is some that can be kept; the disk in any case. `key`, `asked`: see `create`."""
        why: dict[str, Any] = {"cause": cause, "key": key, "asked": asked}
        if memory and sandbox.status.phase in (Phase.RUNNING, Phase.PAUSED):
            try:
                full = SnapshotKind.FULL
                return await self.create(sandbox.project_id, sandbox.id, kind=full, reason=reason, **why)
            except (Conflict, PauseFailed, Unsupported, NoCapacity) as error:
                reason += f" (without its memory: {error.message})"
        return await self.create(sandbox.project_id, sandbox.id, reason=reason, **why)

    # -- the frame around a change

    @asynccontextmanager
    async def turn(self, project_id: str, reference: str) -> AsyncIterator[Sandbox]:
        """The sandbox, settled, while nobody else changes it."""
        async with self._sandboxes.held(project_id, reference) as sandbox_id:
            sandbox = await self._sandboxes.get(project_id, sandbox_id)
            refuse_deleted(sandbox)
            if sandbox.status.phase in TRANSITIONAL or sandbox.status.phase is Phase.NEW:
                raise Busy(f"it is {sandbox.status.phase}", hint="try again in a moment", retry_after=1)
            yield sandbox

    async def end(self, ledger: Ledger, intent: Sandbox) -> None:
        """The change is over; one that has begun since goes on."""
        current = await sandbox_store.by_id(ledger.transaction, intent.id)
        if current is not None and (current.epoch, current.operation) == (intent.epoch, intent.operation):
            await sandbox_store.save(ledger.transaction, replace(current, operation=None), intent.epoch)

    async def _settle(self, snapshot: Snapshot, made: SnapshotOnNode, intent: Sandbox | None = None) -> Snapshot:
        ready = replace(snapshot, phase=SnapshotPhase.READY, parent=made.parent, held=made.held)
        async with self._events.change() as ledger:
            if intent:
                await self.end(ledger, intent)
            if not await store.save(ledger.transaction, ready):
                raise NotFound("its sandbox was deleted meanwhile")
            await _tell(ledger, EventKind.SNAPSHOT_CREATED, ready, ready.reason)
        return ready

    async def moved(self, snapshot: Snapshot, found: SnapshotOnNode, intent: Sandbox | None = None) -> Snapshot:
        """To the object store, or back, as the node says."""
        after = replace(snapshot, archived=found.archived)
        async with self._events.change() as ledger:
            if intent:
                await self.end(ledger, intent)
            if not await store.save(ledger.transaction, after):
                raise NotFound("it was deleted meanwhile")
            if after.archived != snapshot.archived:
                away = after.archived is not None
                await _tell(ledger, EventKind.SNAPSHOT_ARCHIVED if away else EventKind.SNAPSHOT_WOKEN, after)
        return after

    async def _give_up(self, snapshot: Snapshot, reason: str, intent: Sandbox | None = None) -> None:
        async with self._events.change() as ledger:
            if intent:
                await self.end(ledger, intent)
            if await store.remove(ledger.transaction, snapshot.id):
                await idempotency_store.remove(ledger.transaction, snapshot.id)
                await _tell(ledger, EventKind.SNAPSHOT_FAILED, snapshot, reason)

    # -- for the reconciler

    async def reconcile(self, *, paired: bool) -> None:
        """What a crash or an absent node left is ended, and what the node alone knows of our sandboxes is taken over."""
        async with self._events.change() as ledger:
            rows = {row.id: row for row in await store.everywhere(ledger.transaction)}
            sandboxes = {one.id: one for one in await sandbox_store.everywhere(ledger.transaction)}
        # The node after the rows: what nothing was under way for then cannot come any more.
        on_node = {found.id: found for found in await self._runner.snapshots()}
        for row in rows.values():
            sandbox = sandboxes.get(row.sandbox_id)
            if sandbox is None or sandbox.operation or self._sandboxes.busy(row.sandbox_id):
                continue
            try:
                if row.phase is SnapshotPhase.MAKING and row.id in on_node:
                    await self._settle(row, on_node[row.id])
                elif row.phase is SnapshotPhase.READY and row.id in on_node:
                    if row.archived != on_node[row.id].archived:
                        await self.moved(row, on_node[row.id])
                elif row.phase is SnapshotPhase.READY and row.id not in on_node and paired and not is_lost(sandbox):
                    await self._lost(row)
                elif row.phase is SnapshotPhase.MAKING and paired:
                    await self._give_up(row, "it was interrupted")
                elif row.phase is SnapshotPhase.DELETING and paired:
                    async with self.turn(row.project_id, row.sandbox_id) as current:
                        async with self._events.change() as ledger:
                            intent, operation = await self._sandboxes.intend(ledger, current)
                        await self._finish_delete(row, intent, operation)
            except SandkeepError as error:
                log("reconcile.failed", "warning", sandbox=row.sandbox_id, error=error.message)
        for found in on_node.values():
            sandbox = sandboxes.get(found.sandbox_id)
            if found.id not in rows and sandbox and not sandbox.operation and not self._sandboxes.busy(sandbox.id):
                await self._take_over(sandbox, found)

    async def _lost(self, row: Snapshot) -> None:
        """Its record on the node is gone, and what it held is in quarantine, or was deleted since the database's copy."""
        log("snapshot.lost", "error", sandbox=row.sandbox_id, snapshot=row.id)
        async with self._events.change() as ledger:
            await store.give_children_away(ledger.transaction, row)
            if await store.remove(ledger.transaction, row.id):
                reason = "the node has no record of it; what it held may be in quarantine"
                await _tell(ledger, EventKind.SNAPSHOT_LOST, row, reason)

    async def _take_over(self, sandbox: Sandbox, found: SnapshotOnNode) -> None:
        async with self._events.change() as ledger:
            if await store.by_id(ledger.transaction, found.id):
                return
            taken = found.name and await store.get(ledger.transaction, sandbox.id, found.name)
            snapshot = Snapshot(
                id=found.id,
                project_id=sandbox.project_id,
                sandbox_id=sandbox.id,
                name=None if taken else found.name,
                kind=found.kind,
                tags=found.tags,
                parent=found.parent,
                phase=SnapshotPhase.READY,
                reason=found.reason,
                created_at=found.created_at,
                held=found.held,
                cause=found.cause,
                archived=found.archived,
            )
            await store.add(ledger.transaction, snapshot)
            await _tell(ledger, EventKind.SNAPSHOT_CREATED, snapshot, "the node's record of it")


async def _tell(ledger: Ledger, kind: EventKind, snapshot: Snapshot, reason: str = "") -> None:
    owner = snapshot.project_id, snapshot.sandbox_id
    await ledger.tell(kind, *owner, reason, snapshot=snapshot.id, name=snapshot.name)


async def _ready(ledger: Ledger, sandbox: Sandbox, reference: str) -> Snapshot:
    """Raises NotFound, Busy."""
    found = await store.get(ledger.transaction, sandbox.id, reference)
    if found is None or found.phase is SnapshotPhase.DELETING:
        called = sandbox.name or sandbox.id
        raise NotFound(
            f"there is no snapshot {reference[:64]!r} of {called}", hint=f"sandkeep snapshot list {called} shows them"
        )
    if found.phase is SnapshotPhase.MAKING:
        raise Busy("the snapshot is being made", hint="try again in a moment", retry_after=1)
    return found


def refuse_archived(sandbox: Sandbox, snapshot: Snapshot) -> None:
    """Raises Conflict for what needs its disk. What the node says of it counts, but costs more to ask for."""
    if snapshot.archived is not None:
        raise snapshot_is_away(sandbox.name or sandbox.id, snapshot.name or snapshot.id)


def _as_on_node(snapshot: Snapshot) -> SnapshotOnNode:
    return SnapshotOnNode(
        id=snapshot.id,
        sandbox_id=snapshot.sandbox_id,
        kind=snapshot.kind,
        created_at=snapshot.created_at,
        name=snapshot.name,
        tags=snapshot.tags,
        reason=snapshot.reason,
        cause=snapshot.cause,
    )
