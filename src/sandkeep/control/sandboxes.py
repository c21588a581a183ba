"""Sandboxes: what callers may do with them. Intent into the store, the runner now, the status back into the store.

One change at a time per sandbox, in the order they came; a delete cuts in. Every write of a status carries the epoch of
the change it belongs to, so what was overtaken (by a delete, by another server) writes nothing.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import anyio

from sandkeep.contracts.clock import Clock
from sandkeep.contracts.guest import Guest
from sandkeep.contracts.runner import Runner
from sandkeep.control import settlement
from sandkeep.control.allowance import Quota
from sandkeep.control.changes import Changes, changed, check_pause, refuse_deleted
from sandkeep.control.creation import Fork, check_stays, intend
from sandkeep.control.endpoints import Endpoints
from sandkeep.control.events import Events, Ledger
from sandkeep.control.locks import Locks
from sandkeep.domain.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PauseFailed,
    SandkeepError,
    Superseded,
    Unavailable,
)
from sandkeep.domain.event import EventKind
from sandkeep.domain.ids import IdKind, is_id, new_id
from sandkeep.domain.names import check_name
from sandkeep.domain.node import Observed, OperationRef, SandboxOnNode
from sandkeep.domain.restart import OnFailure
from sandkeep.domain.sandbox import (
    Condition,
    ConditionKind,
    Hold,
    Persistence,
    Phase,
    Sandbox,
    Spec,
)
from sandkeep.domain.why import what_wakes
from sandkeep.lib.turns import Turns
from sandkeep.store import idempotency as idempotency_store
from sandkeep.store import sandboxes as store
from sandkeep.store import snapshots as snapshot_store

_CREATES_AT_ONCE = max(4, 2 * (os.cpu_count() or 1))
"""A boot waits about as long as it computes; more of them at once only take longer each."""
_GIVE_UP = 30.0


Bring = Callable[[OperationRef, SandboxOnNode], Awaitable[Observed]]
"""How the node makes it out of a file."""


class Sandboxes:
    def __init__(self, events: Events, runner: Runner, guest: Guest, clock: Clock, quota: Quota) -> None:
        self._quota = quota
        self._events = events
        self._runner = runner
        self._guest = guest
        self._clock = clock
        self._locks = Locks()
        self._deleting: dict[str, anyio.Event] = {}
        self.endpoints = Endpoints(guest)
        self._turns = Turns(_CREATES_AT_ONCE)

    # -- looking

    async def get(self, project_id: str, reference: str) -> Sandbox:
        """By id or name. Raises NotFound."""
        async with self._events.change() as ledger:
            return await _find(ledger, project_id, reference)

    async def page(
        self,
        project_id: str,
        *,
        limit: int,
        after: tuple[float, str] | None,
        labels: dict[str, str],
        phases: list[Phase],
        name: str | None,
    ) -> list[Sandbox]:
        async with self._events.change() as ledger:
            return await store.page(
                ledger.transaction, project_id, limit=limit, after=after, labels=labels, phases=phases, name=name
            )

    async def wait(self, project_id: str, reference: str, phases: set[Phase], timeout: float) -> Sandbox:
        """Until it is in one of these phases. Raises DeadlineExceeded; NotFound when it was deleted meanwhile (unless
        that was waited for)."""
        sandbox = await self.get(project_id, reference)
        with anyio.move_on_after(timeout):
            while sandbox.status.phase not in phases:
                news = self._events.news
                try:
                    sandbox = await self.get(project_id, sandbox.id)
                except NotFound:
                    if Phase.DELETED in phases:
                        return replace(sandbox, status=replace(sandbox.status, phase=Phase.DELETED))
                    raise
                if sandbox.status.phase not in phases:
                    await news.wait()
            return sandbox
        raise DeadlineExceeded(
            f"it is {sandbox.status.phase} after {timeout:g} s: {sandbox.status.reason}",
            phase=sandbox.status.phase,
        )

    # -- making

    async def create(
        self,
        project_id: str,
        name: str | None,
        spec: Spec,
        idempotency_key: str | None,
        caller: str,
        *,
        fork: Fork | None = None,
        bring: Bring | None = None,
    ) -> tuple[Sandbox, bool]:
        """`spec.template` is the name asked for. With a name: get-or-create. True: it was made by this call. `caller`:
        the key that asks; the callers take turns. `fork`: it goes on from a snapshot of another, or comes out of a file, by
        `bring`."""
        if name is not None:
            check_name(name)
        spec.check()
        async with self._locks.creating(f"{project_id}/{name or idempotency_key or new_id(IdKind.OPERATION)}"):
            async with self._events.change() as ledger:
                now = self._clock.now()
                sandbox, fresh = await intend(ledger, now, project_id, name, spec, idempotency_key, self._quota, fork)
            if not fresh:
                if sandbox.status.phase is Phase.NEW or (sandbox.status.phase is Phase.STARTING and sandbox.epoch == 1):
                    return await self._settle_interrupted_create(sandbox, caller, bring), False
                return sandbox, False
            async with self._locks[sandbox.id]:  # so that others wait for it, and the reconciler leaves it alone
                return await self._create_on_node(sandbox, caller, bring), True

    async def _create_on_node(self, sandbox: Sandbox, caller: str, bring: Bring | None = None) -> Sandbox:
        assert sandbox.operation is not None
        node_view = SandboxOnNode(sandbox.id, sandbox.project_id, sandbox.spec, sandbox.name, sandbox.created_at)
        operation = OperationRef(sandbox.operation, sandbox.epoch)
        if bring:
            return await self._bring_to_node(sandbox, operation, node_view, bring)
        try:
            async with self._turns.turn(caller):
                if sandbox.origin:
                    observed = await self._runner.fork(operation, node_view, sandbox.origin, sandbox.origin_memory)
                else:
                    observed = await self._runner.create(operation, node_view)
        except Unavailable:
            raise  # unknown whether it happened: the reconciler settles it when the node is back
        except SandkeepError as error:
            await self._forget(sandbox, f"creation failed: {error.message}")
            raise
        return await self.settle(sandbox, observed, EventKind.SANDBOX_STARTED)

    async def _bring_to_node(
        self, sandbox: Sandbox, operation: OperationRef, node_view: SandboxOnNode, bring: Bring
    ) -> Sandbox:
        """Nobody but this caller has the file: whatever goes wrong, nothing of the sandbox stays."""
        try:
            observed = await bring(operation, node_view)
        except BaseException as error:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_GIVE_UP):
                reason = f"the import failed: {error}" if isinstance(error, SandkeepError) else "the import broke off"
                with suppress(SandkeepError):
                    await self.delete(sandbox.project_id, sandbox.id, reason=reason)
            raise
        return await self.settle(sandbox, observed, EventKind.SANDBOX_IMPORTED)

    async def _settle_interrupted_create(self, sandbox: Sandbox, caller: str, bring: Bring | None = None) -> Sandbox:
        """A retry of a create that a crash interrupted: the same operation again, with the same outcome."""
        async with self.held(sandbox.project_id, sandbox.id):
            current = await self.by_id(sandbox.id) or replace(
                sandbox, status=replace(sandbox.status, phase=Phase.DELETING)
            )
            check_stays(current)  # the reconciler may have taken it for given up
            if current.status.phase not in (Phase.NEW, Phase.STARTING):
                return current
            return await self._create_on_node(current, caller, bring)

    async def _forget(self, sandbox: Sandbox, reason: str) -> None:
        async with self._events.change() as ledger:
            if await store.remove(ledger.transaction, sandbox.id):
                await snapshot_store.remove_of(ledger.transaction, sandbox.id)
                await idempotency_store.remove(ledger.transaction, sandbox.id)
                await ledger.tell(EventKind.SANDBOX_DELETED, sandbox.project_id, sandbox.id, reason)
        self._locks.pop(sandbox.id, None)
        self.endpoints.forget(sandbox.id)
        await self.endpoints.hang_up(sandbox.id)

    # -- changing

    async def pause(
        self, project_id: str, reference: str, hold: Hold, or_disk: bool | None, *, reason: str = ""
    ) -> Sandbox:
        """`reason`: why, when its owner did not ask for it now."""

        async def act(sandbox: Sandbox, operation: OperationRef) -> Observed:
            fall_back = sandbox.spec.pause_or_disk if or_disk is None else or_disk
            self.endpoints.forget(sandbox.id)
            if hold is Hold.DISK and sandbox.status.phase is Phase.RUNNING:
                with suppress(SandkeepError):
                    await self._guest.hang_up((await self._runner.endpoint(sandbox.id)).address)
            return await self._runner.pause(operation, sandbox.id, hold, fall_back)

        def check(sandbox: Sandbox) -> bool:
            check_pause(sandbox, hold)
            return sandbox.status.phase is Phase.PAUSED and sandbox.status.hold in (hold, Hold.DISK)

        kinds = (Phase.PAUSING, EventKind.SANDBOX_PAUSING, EventKind.SANDBOX_PAUSED)
        try:
            return await self.change(project_id, reference, *kinds, check, act, reason=reason)
        except Conflict:
            await self._call_off(project_id, reference)  # whoever wanted it paused does not want it started
            raise

    async def resume(self, project_id: str, reference: str) -> Sandbox:
        async def act(sandbox: Sandbox, operation: OperationRef) -> Observed:
            return await self._runner.resume(operation, sandbox.id)

        def check(sandbox: Sandbox) -> bool:
            if sandbox.status.phase in (Phase.STOPPED, Phase.FAILED):
                raise Conflict(
                    f"it is {sandbox.status.phase}, not paused",
                    hint=f"start it: sandkeep start {sandbox.name or sandbox.id}",
                )
            return sandbox.status.phase is Phase.RUNNING

        return await self.change(
            project_id, reference, Phase.RESUMING, EventKind.SANDBOX_RESUMING, EventKind.SANDBOX_RESUMED, check, act
        )

    async def stop(self, project_id: str, reference: str, *, reason: str = "") -> Sandbox:
        async def act(sandbox: Sandbox, operation: OperationRef) -> Observed:
            self.endpoints.forget(sandbox.id)
            return await self._runner.stop(operation, sandbox.id)

        def check(sandbox: Sandbox) -> bool:
            return sandbox.status.phase is Phase.STOPPED

        kinds = (Phase.STOPPING, EventKind.SANDBOX_STOPPING, EventKind.SANDBOX_STOPPED)
        sandbox = await self.change(project_id, reference, *kinds, check, act, reason=reason)
        if sandbox.spec.persistence is Persistence.EPHEMERAL:
            await self.delete(project_id, sandbox.id, reason="ephemeral: deleted because it stopped")
            sandbox = replace(sandbox, status=replace(sandbox.status, phase=Phase.DELETED))
        return sandbox

    async def start(self, project_id: str, reference: str, *, rescue: bool = False, by_hand: bool = True) -> Sandbox:
        """`rescue`: some more room on its disk. Not `by_hand`: a call needs it, and its failures stay known."""

        async def act(sandbox: Sandbox, operation: OperationRef) -> Observed:
            return await self._runner.start(operation, sandbox.id, rescue)

        def check(sandbox: Sandbox) -> bool:
            if sandbox.status.phase is Phase.PAUSED and sandbox.status.hold is Hold.MEMORY:
                raise Conflict(
                    "it is paused in memory", hint=f"resume it: sandkeep resume {sandbox.name or sandbox.id}"
                )
            if sandbox.status.phase is not Phase.RUNNING:
                return False
            inside = sandbox.status.condition(ConditionKind.RESCUE) is not None
            if rescue and not inside:
                raise Conflict(
                    "it runs: rescue is for the next start",
                    hint=f"stop it first: sandkeep stop {sandbox.name or sandbox.id}",
                )
            return rescue or not inside or not by_hand

        return await self.change(
            project_id,
            reference,
            Phase.STARTING,
            EventKind.SANDBOX_STARTING,
            EventKind.SANDBOX_STARTED,
            check,
            act,
            by_hand=by_hand,
        )

    async def start_again(self, sandbox: Sandbox) -> Sandbox:
        """A planned restart, unless it was called off meanwhile. A try that fails plans the next one."""

        async def act(sandbox: Sandbox, operation: OperationRef) -> Observed:
            return await self._runner.start(operation, sandbox.id, False)

        def check(current: Sandbox) -> bool:
            return current.status.phase is not Phase.STOPPED or current.restarts != sandbox.restarts

        return await self.change(
            sandbox.project_id,
            sandbox.id,
            Phase.STARTING,
            EventKind.SANDBOX_STARTING,
            EventKind.SANDBOX_STARTED,
            check,
            act,
            by_hand=False,
        )

    async def update(self, project_id: str, reference: str, changes: Changes) -> Sandbox:
        """Limits take effect on the running machine; a changed lifetime counts from now."""
        async with self.held(project_id, reference) as sandbox_id:
            async with self._events.change() as ledger:
                sandbox = await _find(ledger, project_id, sandbox_id)
                refuse_deleted(sandbox)  # a newer epoch than the delete's would hold that up
                spec = changed(sandbox.spec, changes)
                spec.check()
                if spec.limits.disk < sandbox.spec.limits.disk:
                    raise InvalidArgument(
                        "a disk cannot shrink", hint="create a smaller sandbox and copy the files", field="disk"
                    )
                intent, operation = await self.intend(ledger, sandbox)
            await self._runner.update(operation, sandbox.id, spec.limits, spec.lifetime, spec.labels)
            now = self._clock.now()
            expires = spec.lifetime.ends(now) if changes.lifetime else sandbox.expires_at
            updated = replace(intent, spec=spec, updated_at=now, expires_at=expires, operation=None)
            if spec.on_failure is not OnFailure.RESTART:
                updated = settlement.forgotten(updated)
            async with self._events.change() as ledger:
                await self._save(ledger, updated, intent.epoch)
                await ledger.tell(EventKind.SANDBOX_UPDATED, project_id, sandbox.id)
            return updated

    async def delete(self, project_id: str, reference: str, reason: str = "deleted on request") -> None:
        """From every phase; what is under way is cancelled."""
        while True:
            sandbox = await self.get(project_id, reference)
            operation = OperationRef(new_id(IdKind.OPERATION), sandbox.epoch + 1)
            status = replace(sandbox.status, phase=Phase.DELETING, reason=reason, since=self._clock.now())
            intent = replace(sandbox, status=status, epoch=operation.epoch, operation=operation.id)
            async with self._events.change() as ledger:
                if await store.save(ledger.transaction, intent, sandbox.epoch):
                    await ledger.tell(EventKind.SANDBOX_DELETING, project_id, sandbox.id, reason)
                    break
        self.endpoints.forget(sandbox.id)
        await self.finish_delete(intent)

    async def finish_delete(self, sandbox: Sandbox) -> None:
        """The node first, then the row: after this call nothing of it is left. Raises Unavailable without a node; the
        reconciler then calls it again. Idempotent: a second one waits for the first."""
        assert sandbox.operation is not None
        while (under_way := self._deleting.get(sandbox.id)) is not None:
            await under_way.wait()
            if await self.by_id(sandbox.id) is None:
                return
        done = self._deleting[sandbox.id] = anyio.Event()
        try:
            try:
                await self._runner.delete(OperationRef(sandbox.operation, sandbox.epoch), sandbox.id)
            except Superseded as error:  # the database is a copy from before; somebody wants it gone all the same
                ahead = int(error.details.get("current", sandbox.epoch)) + 1
                await self._runner.delete(OperationRef(sandbox.operation, ahead), sandbox.id)
            await self._forget(sandbox, sandbox.status.reason)
        finally:
            del self._deleting[sandbox.id]
            done.set()

    def deleting(self, sandbox_id: str) -> bool:
        """Whether a deletion of it is under way in this process."""
        return sandbox_id in self._deleting

    async def heartbeat(self, project_id: str, reference: str) -> None:
        """The client of an ephemeral sandbox is still there."""
        async with self._events.change() as ledger:
            sandbox = await _find(ledger, project_id, reference)
            if sandbox.spec.lifetime.grace is None:
                return
            ends = self._clock.now() + sandbox.spec.lifetime.grace
            if sandbox.spec.lifetime.ttl is not None:
                ends = min(ends, sandbox.created_at + sandbox.spec.lifetime.ttl)
            await store.save(ledger.transaction, replace(sandbox, expires_at=ends), sandbox.epoch)

    async def note_out_of_memory(self, sandbox: Sandbox, reason: str, processes: object) -> None:
        """Processes in it were killed; it runs on."""
        async with self._events.change() as ledger:
            await ledger.tell(
                EventKind.SANDBOX_OUT_OF_MEMORY, sandbox.project_id, sandbox.id, reason, processes=processes
            )

    async def note_guest(self, sandbox: Sandbox, *, ready: bool, reason: str) -> None:
        """Whether its agent answers. Not if anything was done to it since this `sandbox` was read."""
        async with self._events.change() as ledger:
            now = await store.by_id(ledger.transaction, sandbox.id)
            if now is None or (now.status.phase, now.status.since) != (Phase.RUNNING, sandbox.status.since):
                return
            condition = Condition(ConditionKind.GUEST_READY, ready, reason, self._clock.now())
            after = replace(now, status=now.status.with_condition(condition))
            await store.save(ledger.transaction, after, now.epoch)

    # -- the frame around every change

    @asynccontextmanager
    async def held(self, project_id: str, reference: str) -> AsyncIterator[str]:
        """Its turn to be changed, by id. An id is taken as it is: whether there is such a sandbox, and whether it is the
        caller's, is seen under the lock, in the transaction that changes it."""
        sandbox_id = reference if is_id(reference, IdKind.SANDBOX) else (await self.get(project_id, reference)).id
        lock = self._locks[sandbox_id]
        async with lock:
            try:
                yield sandbox_id
            except NotFound:
                if not lock.statistics().tasks_waiting:
                    self._locks.pop(sandbox_id, None)
                raise

    async def change(
        self,
        project_id: str,
        reference: str,
        during: Phase,
        begun: EventKind,
        ended: EventKind,
        settled: Callable[[Sandbox], bool],
        act: Callable[[Sandbox, OperationRef], Awaitable[Observed]],
        *,
        by_hand: bool = True,
        reason: str = "",
    ) -> Sandbox:
        """`by_hand`: its owner asked, so that a restart that was planned is called off. `reason`: added to the node's."""
        async with self.held(project_id, reference) as sandbox_id:
            async with self._events.change() as ledger:
                sandbox = await _find(ledger, project_id, sandbox_id)
                refuse_deleted(sandbox)
                if settled(sandbox):
                    return await self._without_plan(ledger, sandbox) if by_hand else sandbox
                if by_hand:
                    sandbox = settlement.forgotten(sandbox)
                status = replace(sandbox.status, phase=during, since=self._clock.now(), reason=reason or "asked for")
                intent, operation = await self.intend(ledger, replace(sandbox, status=status))
                await ledger.tell(begun, project_id, sandbox.id, reason)
            try:
                observed = await act(sandbox, operation)
            except Unavailable as error:
                if error.details.get("part") == "store":  # the node answered: it is as it was
                    await self._failed(intent, error)
                raise  # the node is away: whoever settles it then writes the status
            except NotFound as error:
                await self._refuse_lost(intent)
                await self._failed(intent, error)
                raise
            except SandkeepError as error:
                await self._failed(intent, error)
                raise
            if reason:
                observed = replace(observed, reason=f"{observed.reason}: {reason}")
            return await self.settle(intent, observed, ended)

    async def intend(self, ledger: Ledger, sandbox: Sandbox) -> tuple[Sandbox, OperationRef]:
        """Written down under an epoch of its own before anything is done. Raises Conflict, NotFound."""
        operation = OperationRef(new_id(IdKind.OPERATION), sandbox.epoch + 1)
        intent = replace(sandbox, epoch=operation.epoch, operation=operation.id)
        await self._save(ledger, intent, sandbox.epoch)
        return intent, operation

    async def _refuse_lost(self, intent: Sandbox) -> None:
        """Raises Conflict when the node has no record of it, after that was written down."""
        if await self._runner.show(intent.id) is None:
            settled = await self.settle(intent, settlement.lost(intent, self._clock.now()))
            raise Conflict(settled.status.reason, hint=what_wakes(settled))

    async def _failed(self, intent: Sandbox, error: SandkeepError) -> None:
        """The node is as it says it is; the store follows it."""
        observed = await self._runner.show(intent.id)
        if observed is None or observed.phase is Phase.DELETED:
            return
        kind = {
            Phase.PAUSING: EventKind.SANDBOX_PAUSE_FAILED,
            Phase.RESUMING: EventKind.SANDBOX_RESUME_FAILED,
            Phase.ARCHIVING: EventKind.SANDBOX_ARCHIVE_FAILED,
            Phase.WAKING: EventKind.SANDBOX_WAKE_FAILED,
        }.get(intent.status.phase, EventKind.SANDBOX_FAILED)
        data: dict[str, Any] = {"code": error.code}
        if isinstance(error, PauseFailed):
            data["connections_reset"] = bool(error.details.get("connections_reset"))
        reason = f"{intent.status.phase} failed: {error.message}"
        await self.settle(intent, replace(observed, reason=reason), kind, **data)

    async def settle(self, sandbox: Sandbox, observed: Observed, kind: EventKind | None = None, **data: Any) -> Sandbox:
        """Write what the node observed, unless a newer change has begun: then it was so for a moment only."""
        done = settlement.settle(sandbox, observed, self._clock.now(), kind, **data)
        async with self._events.change() as ledger:
            written = await self._write(ledger, sandbox, done)
        return await self._after(done.sandbox) if written else done.sandbox

    async def follow(self, seen: Sandbox, observed: Observed, kind: EventKind | None = None) -> bool:
        """The same for what nobody here asked for. False: it is not any more as it was seen, so look again."""
        async with self._events.change() as ledger:
            current = await store.by_id(ledger.transaction, seen.id)
            if current is None or (current.epoch, current.status, current.restarts) != (
                seen.epoch,
                seen.status,
                seen.restarts,
            ):
                return False
            done = settlement.settle(current, observed, self._clock.now(), kind)
            written = await self._write(ledger, current, done)
        if written:
            await self._after(done.sandbox)
        return True

    async def _write(self, ledger: Ledger, before: Sandbox, done: settlement.Settlement) -> bool:
        if not await store.save(ledger.transaction, done.sandbox, before.epoch):
            return False
        for told in done.events:
            await ledger.tell(told.kind, before.project_id, before.id, told.reason, **told.data)
        return True

    async def _after(self, settled: Sandbox) -> Sandbox:
        if settled.status.phase is not Phase.RUNNING:
            self.endpoints.forget(settled.id)
            if settled.status.hold is not Hold.MEMORY:
                await self.endpoints.hang_up(settled.id)
        return settled

    async def _call_off(self, project_id: str, reference: str) -> None:
        async with self.held(project_id, reference) as sandbox_id, self._events.change() as ledger:
            await self._without_plan(ledger, await _find(ledger, project_id, sandbox_id))

    async def _without_plan(self, ledger: Ledger, sandbox: Sandbox) -> Sandbox:
        """Its owner wants it as it is."""
        after = settlement.forgotten(sandbox)
        if sandbox.restarts.next_at is not None:
            reason = "the restart that was planned is called off"
            await ledger.tell(EventKind.SANDBOX_STOPPED, sandbox.project_id, sandbox.id, reason)
        if after != sandbox:
            await self._save(ledger, after, sandbox.epoch)
        return after

    async def _save(self, ledger: Ledger, sandbox: Sandbox, expected_epoch: int) -> None:
        if await store.save(ledger.transaction, sandbox, expected_epoch):
            return
        refuse_deleted(await store.by_id(ledger.transaction, sandbox.id))
        raise Conflict("it was changed meanwhile", hint="look again and retry")

    # -- for the reconciler

    async def everywhere(self) -> list[Sandbox]:
        async with self._events.change() as ledger:
            return await store.everywhere(ledger.transaction)

    async def by_id(self, sandbox_id: str) -> Sandbox | None:
        if not is_id(sandbox_id, IdKind.SANDBOX):
            return None
        async with self._events.change() as ledger:
            return await store.by_id(ledger.transaction, sandbox_id)

    def turn(self, sandbox_id: str) -> anyio.Lock:
        """Held while it is changed."""
        return self._locks[sandbox_id]

    def busy(self, sandbox_id: str) -> bool:
        return sandbox_id in self._locks and self._locks[sandbox_id].locked()

    async def forget(self, sandbox: Sandbox, reason: str) -> None:
        await self._forget(sandbox, reason)


async def _find(ledger: Ledger, project_id: str, reference: str) -> Sandbox:
    """By id or name. Raises NotFound."""
    found = await store.get(ledger.transaction, project_id, reference)
    if found is None:
        raise NotFound(f"there is no sandbox {reference[:64]!r}", hint="sandkeep list shows yours")
    return found
