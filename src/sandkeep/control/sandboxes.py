"""Sandboxes: what callers may do with them. Intent into the store, the runner now, the status back into the store.

One change at a time per sandbox, in the order they came; a delete cuts in. Every write of a status carries the epoch of
the change it belongs to, so what was overtaken (by a delete, by another server) writes nothing.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import anyio

from sandkeep.contracts.clock import Clock
from sandkeep.contracts.guest import Guest
from sandkeep.contracts.runner import Runner
from sandkeep.control.events import Events, Ledger
from sandkeep.domain.errors import (
    AlreadyExists,
    Busy,
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PauseFailed,
    SandkeepError,
    Unavailable,
    Unsupported,
)
from sandkeep.domain.event import EventKind
from sandkeep.domain.ids import IdKind, is_id, new_id
from sandkeep.domain.names import check_name
from sandkeep.domain.node import Endpoint, Observed, OperationRef, SandboxOnNode
from sandkeep.domain.sandbox import (
    Hold,
    Lifetime,
    Limits,
    Persistence,
    Phase,
    Sandbox,
    Spec,
    Status,
    differences,
)
from sandkeep.domain.template import TemplatePhase
from sandkeep.store import idempotency as idempotency_store
from sandkeep.store import sandboxes as store
from sandkeep.store import templates as template_store

_SETTLED_EVENT = {
    Phase.RUNNING: EventKind.SANDBOX_STARTED,
    Phase.PAUSED: EventKind.SANDBOX_PAUSED,
    Phase.STOPPED: EventKind.SANDBOX_STOPPED,
    Phase.FAILED: EventKind.SANDBOX_FAILED,
}


@dataclass(frozen=True)
class Reached:
    """A running sandbox and the way to its agent."""

    id: str
    endpoint: Endpoint


@dataclass(frozen=True)
class Changes:
    """What an update asks to change; None leaves as is."""

    labels: dict[str, str] | None = None
    cpus: float | None = None
    memory: int | None = None
    disk: int | None = None
    pids: int | None = None
    lifetime: Lifetime | None = None
    pause_or_disk: bool | None = None


class Sandboxes:
    def __init__(self, events: Events, runner: Runner, guest: Guest, clock: Clock) -> None:
        self._events = events
        self._runner = runner
        self._guest = guest
        self._clock = clock
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._deleting: dict[str, anyio.Event] = {}
        self._reached: dict[tuple[str, str], Reached] = {}
        self._addresses: dict[str, str] = {}

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
        self, project_id: str, name: str | None, spec: Spec, idempotency_key: str | None
    ) -> tuple[Sandbox, bool]:
        """`spec.template` is the name asked for. With a name: get-or-create. True: it was made by this call."""
        if name is not None:
            check_name(name)
        spec.check()
        if spec.persistence is Persistence.SNAPSHOT:
            raise Unsupported(
                "persistence=snapshot is not available yet",
                hint="use volume (the disk survives) or full (disk, memory and processes)",
                field="persistence",
            )
        fingerprint = hashlib.sha256(json.dumps([name, asdict(spec)], sort_keys=True).encode()).hexdigest()
        async with self._creating(f"{project_id}/{name or idempotency_key or new_id(IdKind.OPERATION)}"):
            sandbox, fresh = await self._intend(project_id, name, spec, idempotency_key, fingerprint)
            if not fresh:
                if sandbox.status.phase is Phase.NEW or (sandbox.status.phase is Phase.STARTING and sandbox.epoch == 1):
                    return await self._settle_interrupted_create(sandbox), False
                return sandbox, False
            async with self._locks[sandbox.id]:  # so that others wait for it, and the reconciler leaves it alone
                return await self._create_on_node(sandbox), True

    @asynccontextmanager
    async def _creating(self, key: str) -> AsyncIterator[None]:
        """Creates of one name (or one idempotency key) come one after the other."""
        lock = self._locks[key]
        async with lock:
            try:
                yield
            finally:
                if not lock.statistics().tasks_waiting:
                    self._locks.pop(key, None)

    async def _intend(
        self, project_id: str, name: str | None, spec: Spec, key: str | None, fingerprint: str
    ) -> tuple[Sandbox, bool]:
        now = self._clock.now()
        async with self._events.change() as ledger:
            transaction = ledger.transaction
            if key is not None:
                before = await idempotency_store.get(transaction, project_id, key)
                if before is not None:
                    if before[0] != fingerprint:
                        raise Conflict("this Idempotency-Key was used for another request", hint="use a fresh key")
                    made = await store.get(transaction, project_id, before[1])
                    if made is None:
                        raise NotFound("what this Idempotency-Key made was deleted", hint="use a fresh key")
                    _check_stays(made)
                    return made, False
            template = await template_store.get(transaction, project_id, spec.template)
            if template is None or template.phase is not TemplatePhase.READY:
                state = f"is {template.phase}" if template else "does not exist"
                raise NotFound(
                    f"template {spec.template[:64]!r} {state}", hint="sandkeep template list", field="template"
                )
            spec = replace(spec, template=template.id, template_name=template.name)
            if name is not None:
                existing = await store.get(transaction, project_id, name)
                if existing is not None:
                    _check_stays(existing)
                    fields = differences(spec, existing.spec)
                    if fields:
                        raise AlreadyExists(
                            f"a sandbox named {name} exists with another {', '.join(fields)}",
                            hint="choose another name, or update or delete that one",
                            fields=fields,
                            existing=existing.id,
                        )
                    return existing, False
            lifetime = spec.lifetime
            sandbox = Sandbox(
                id=new_id(IdKind.SANDBOX),
                project_id=project_id,
                name=name,
                spec=spec,
                status=Status(Phase.STARTING, reason="being created", since=now),
                epoch=1,
                created_at=now,
                updated_at=now,
                expires_at=_expiry(now, lifetime),
                operation=new_id(IdKind.OPERATION),
            )
            await store.add(transaction, sandbox)
            if key is not None:
                await idempotency_store.add(transaction, project_id, key, fingerprint, sandbox.id, now)
            await ledger.tell(EventKind.SANDBOX_CREATED, project_id, sandbox.id, name=name, template=spec.template_name)
            return sandbox, True

    async def _create_on_node(self, sandbox: Sandbox) -> Sandbox:
        assert sandbox.operation is not None
        node_view = SandboxOnNode(sandbox.id, sandbox.project_id, sandbox.spec, sandbox.name)
        try:
            observed = await self._runner.create(OperationRef(sandbox.operation, sandbox.epoch), node_view)
        except Unavailable:
            raise  # unknown whether it happened: the reconciler settles it when the node is back
        except SandkeepError as error:
            await self._forget(sandbox, f"creation failed: {error.message}")
            raise
        return await self.settle(sandbox, observed, EventKind.SANDBOX_STARTED)

    async def _settle_interrupted_create(self, sandbox: Sandbox) -> Sandbox:
        """A retry of a create that a crash interrupted: the same operation again, with the same outcome."""
        async with self._locks[sandbox.id]:
            current = await self.get(sandbox.project_id, sandbox.id)
            if current.status.phase not in (Phase.NEW, Phase.STARTING):
                return current
            return await self._create_on_node(current)

    async def _forget(self, sandbox: Sandbox, reason: str) -> None:
        async with self._events.change() as ledger:
            if await store.remove(ledger.transaction, sandbox.id):
                await idempotency_store.remove(ledger.transaction, sandbox.id)
                await ledger.tell(EventKind.SANDBOX_DELETED, sandbox.project_id, sandbox.id, reason)
        self._unreach(sandbox.id)
        await self._hang_up(sandbox.id)

    # -- changing

    async def pause(self, project_id: str, reference: str, hold: Hold, or_disk: bool | None) -> Sandbox:
        async def act(sandbox: Sandbox, operation: OperationRef) -> Observed:
            fall_back = sandbox.spec.pause_or_disk if or_disk is None else or_disk
            self._unreach(sandbox.id)
            if hold is Hold.DISK and sandbox.status.phase is Phase.RUNNING:
                with suppress(SandkeepError):
                    await self._guest.hang_up((await self._runner.endpoint(sandbox.id)).address)
            return await self._runner.pause(operation, sandbox.id, hold, fall_back)

        def check(sandbox: Sandbox) -> bool:
            _check_pause(sandbox, hold)
            return sandbox.status.phase is Phase.PAUSED and sandbox.status.hold in (hold, Hold.DISK)

        return await self._change(
            project_id, reference, Phase.PAUSING, EventKind.SANDBOX_PAUSING, EventKind.SANDBOX_PAUSED, check, act
        )

    async def resume(self, project_id: str, reference: str) -> Sandbox:
        async def act(sandbox: Sandbox, operation: OperationRef) -> Observed:
            return await self._runner.resume(operation, sandbox.id)

        def check(sandbox: Sandbox) -> bool:
            if sandbox.status.phase in (Phase.STOPPED, Phase.FAILED):
                raise Conflict(f"it is {sandbox.status.phase}, not paused", hint="start it: sandkeep start")
            return sandbox.status.phase is Phase.RUNNING

        return await self._change(
            project_id, reference, Phase.RESUMING, EventKind.SANDBOX_RESUMING, EventKind.SANDBOX_RESUMED, check, act
        )

    async def stop(self, project_id: str, reference: str) -> Sandbox:
        async def act(sandbox: Sandbox, operation: OperationRef) -> Observed:
            self._unreach(sandbox.id)
            return await self._runner.stop(operation, sandbox.id)

        def check(sandbox: Sandbox) -> bool:
            return sandbox.status.phase is Phase.STOPPED

        sandbox = await self._change(
            project_id, reference, Phase.STOPPING, EventKind.SANDBOX_STOPPING, EventKind.SANDBOX_STOPPED, check, act
        )
        if sandbox.spec.persistence is Persistence.EPHEMERAL:
            await self.delete(project_id, sandbox.id, reason="ephemeral: deleted because it stopped")
            sandbox = replace(sandbox, status=replace(sandbox.status, phase=Phase.DELETED))
        return sandbox

    async def start(self, project_id: str, reference: str) -> Sandbox:
        async def act(sandbox: Sandbox, operation: OperationRef) -> Observed:
            return await self._runner.start(operation, sandbox.id)

        def check(sandbox: Sandbox) -> bool:
            if sandbox.status.phase is Phase.PAUSED and sandbox.status.hold is Hold.MEMORY:
                raise Conflict("it is paused in memory", hint="resume it: sandkeep resume")
            return sandbox.status.phase is Phase.RUNNING

        return await self._change(
            project_id, reference, Phase.STARTING, EventKind.SANDBOX_STARTING, EventKind.SANDBOX_STARTED, check, act
        )

    async def update(self, project_id: str, reference: str, changes: Changes) -> Sandbox:
        """Limits take effect on the running machine; a changed lifetime counts from now."""
        async with self._held(project_id, reference) as sandbox_id:
            async with self._events.change() as ledger:
                sandbox = await _find(ledger, project_id, sandbox_id)
                spec = _changed(sandbox.spec, changes)
                spec.check()
                if spec.limits.disk < sandbox.spec.limits.disk:
                    raise InvalidArgument(
                        "a disk cannot shrink", hint="create a smaller sandbox and copy the files", field="disk"
                    )
                epoch = sandbox.epoch + 1
                operation = OperationRef(new_id(IdKind.OPERATION), epoch)
                intent = replace(sandbox, epoch=epoch, operation=operation.id)
                await self._save(ledger, intent, sandbox.epoch)
            await self._runner.update(operation, sandbox.id, spec.limits, spec.lifetime, spec.labels)
            now = self._clock.now()
            expires = _expiry(now, spec.lifetime) if changes.lifetime else sandbox.expires_at
            updated = replace(intent, spec=spec, updated_at=now, expires_at=expires, operation=None)
            async with self._events.change() as ledger:
                await self._save(ledger, updated, epoch)
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
        self._unreach(sandbox.id)
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
            await self._runner.delete(OperationRef(sandbox.operation, sandbox.epoch), sandbox.id)
            await self._forget(sandbox, sandbox.status.reason)
            self._locks.pop(sandbox.id, None)
        finally:
            del self._deleting[sandbox.id]
            done.set()

    def deleting(self, sandbox_id: str) -> bool:
        """Whether a deletion of it is under way in this process."""
        return sandbox_id in self._deleting

    async def heartbeat(self, project_id: str, reference: str) -> None:
        """The client of an ephemeral sandbox is still there."""
        sandbox = await self.get(project_id, reference)
        if sandbox.spec.lifetime.grace is None:
            return
        ends = self._clock.now() + sandbox.spec.lifetime.grace
        if sandbox.spec.lifetime.ttl is not None:
            ends = min(ends, sandbox.created_at + sandbox.spec.lifetime.ttl)
        async with self._events.change() as ledger:
            await store.save(ledger.transaction, replace(sandbox, expires_at=ends), sandbox.epoch)

    async def note_out_of_memory(self, sandbox: Sandbox, reason: str, processes: object) -> None:
        """Processes in it were killed; it runs on."""
        async with self._events.change() as ledger:
            await ledger.tell(
                EventKind.SANDBOX_OUT_OF_MEMORY, sandbox.project_id, sandbox.id, reason, processes=processes
            )

    # -- reaching the agent

    async def reach(self, project_id: str, reference: str, *, wake: bool) -> Reached:
        """The way to the agent of a running sandbox; wakes it when asked to. Raises Conflict, NotFound."""
        known = self._reached.get((project_id, reference))
        if known:
            return known
        sandbox = await self.get(project_id, reference)
        if sandbox.status.phase is not Phase.RUNNING:
            sandbox = await self._wake(sandbox, wake)
        reached = Reached(sandbox.id, await self._runner.endpoint(sandbox.id))
        self._reached[(project_id, reference)] = reached
        self._addresses[sandbox.id] = reached.endpoint.address
        return reached

    async def _wake(self, sandbox: Sandbox, wake: bool) -> Sandbox:
        if not wake:
            raise Conflict(
                f"it is {sandbox.status.phase}: {sandbox.status.reason}",
                hint="resume or start it, or leave out no_resume",
                phase=sandbox.status.phase,
            )
        async with self._locks[sandbox.id]:  # whatever is under way ends first
            sandbox = await self.get(sandbox.project_id, sandbox.id)
        match sandbox.status.phase:
            case Phase.RUNNING:
                return sandbox
            case Phase.PAUSED:
                return await self.resume(sandbox.project_id, sandbox.id)
            case Phase.STOPPED | Phase.FAILED:
                return await self.start(sandbox.project_id, sandbox.id)
        raise Conflict(f"it is {sandbox.status.phase}", hint="wait for it: sandkeep wait", phase=sandbox.status.phase)

    def _unreach(self, sandbox_id: str) -> None:
        self._reached = {key: reached for key, reached in self._reached.items() if reached.id != sandbox_id}

    async def _hang_up(self, sandbox_id: str) -> None:
        """Its machine is gone: calls that wait for its agent must hear of it, since a machine that was killed says
        nothing, and its connections would stay open for ever. (An address is not given again for ten minutes.)"""
        address = self._addresses.pop(sandbox_id, None)
        if address:
            with suppress(SandkeepError):
                await self._guest.hang_up(address)

    def unreach_all(self) -> None:
        """The node restarted: every endpoint is asked for anew."""
        self._reached = {}

    async def unreachable(self, reached: Reached) -> None:
        """A dial failed: forget the endpoint, so that the next try asks the node."""
        self._unreach(reached.id)

    # -- the frame around every change

    @asynccontextmanager
    async def _held(self, project_id: str, reference: str) -> AsyncIterator[str]:
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

    async def _change(
        self,
        project_id: str,
        reference: str,
        during: Phase,
        begun: EventKind,
        ended: EventKind,
        settled: Callable[[Sandbox], bool],
        act: Callable[[Sandbox, OperationRef], Awaitable[Observed]],
    ) -> Sandbox:
        async with self._held(project_id, reference) as sandbox_id:
            async with self._events.change() as ledger:
                sandbox = await _find(ledger, project_id, sandbox_id)
                if sandbox.status.phase is Phase.DELETING:
                    raise NotFound("it is being deleted")
                if settled(sandbox):
                    return sandbox
                operation = OperationRef(new_id(IdKind.OPERATION), sandbox.epoch + 1)
                status = replace(sandbox.status, phase=during, since=self._clock.now(), reason="asked for")
                intent = replace(sandbox, status=status, epoch=operation.epoch, operation=operation.id)
                await self._save(ledger, intent, sandbox.epoch)
                await ledger.tell(begun, project_id, sandbox.id)
            try:
                observed = await act(sandbox, operation)
            except (NotFound, Unavailable):
                raise  # deleted meanwhile, or the node is away: whoever settles it writes the status
            except SandkeepError as error:
                await self._failed(intent, error)
                raise
            return await self.settle(intent, observed, ended)

    async def _failed(self, intent: Sandbox, error: SandkeepError) -> None:
        """The node is as it says it is; the store follows it."""
        observed = await self._runner.show(intent.id)
        if observed is None:
            return
        kind = {
            Phase.PAUSING: EventKind.SANDBOX_PAUSE_FAILED,
            Phase.RESUMING: EventKind.SANDBOX_RESUME_FAILED,
        }.get(intent.status.phase, EventKind.SANDBOX_FAILED)
        data: dict[str, Any] = {"code": error.code}
        if isinstance(error, PauseFailed):
            data["connections_reset"] = bool(error.details.get("connections_reset"))
        reason = f"{intent.status.phase} failed: {error.message}"
        await self.settle(intent, replace(observed, reason=reason), kind, **data)

    async def settle(self, sandbox: Sandbox, observed: Observed, kind: EventKind | None = None, **data: Any) -> Sandbox:
        """Write what the node observed, unless a newer change has begun."""
        now = self._clock.now()
        status = Status(observed.phase, observed.hold, observed.reason, now, observed.conditions)
        epoch = max(sandbox.epoch, observed.epoch)
        settled = replace(sandbox, status=status, operation=None, updated_at=now, epoch=epoch)
        told = _SETTLED_EVENT.get(observed.phase) if kind is None else kind
        if kind in (EventKind.SANDBOX_PAUSED, EventKind.SANDBOX_RESUMED) and observed.phase is Phase.STOPPED:
            told = EventKind.SANDBOX_STOPPED
        async with self._events.change() as ledger:
            if not await store.save(ledger.transaction, settled, sandbox.epoch):
                return sandbox
            if told:
                await ledger.tell(told, sandbox.project_id, sandbox.id, observed.reason, hold=observed.hold, **data)
        if observed.phase is not Phase.RUNNING:
            self._unreach(sandbox.id)
            if observed.hold is not Hold.MEMORY:
                await self._hang_up(sandbox.id)
        return settled

    async def _save(self, ledger: Ledger, sandbox: Sandbox, expected_epoch: int) -> None:
        if not await store.save(ledger.transaction, sandbox, expected_epoch):
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

    async def expired(self) -> list[Sandbox]:
        async with self._events.change() as ledger:
            return await store.expired(ledger.transaction, self._clock.now())

    def busy(self, sandbox_id: str) -> bool:
        return sandbox_id in self._locks and self._locks[sandbox_id].locked()

    async def forget(self, sandbox: Sandbox, reason: str) -> None:
        await self._forget(sandbox, reason)

    async def clear_expiry(self, sandbox: Sandbox) -> None:
        async with self._events.change() as ledger:
            if await store.save(ledger.transaction, replace(sandbox, expires_at=None), sandbox.epoch):
                await ledger.tell(EventKind.SANDBOX_EXPIRED, sandbox.project_id, sandbox.id, "its lifetime ended")


async def _find(ledger: Ledger, project_id: str, reference: str) -> Sandbox:
    """By id or name. Raises NotFound."""
    found = await store.get(ledger.transaction, project_id, reference)
    if found is None:
        raise NotFound(f"there is no sandbox {reference[:64]!r}", hint="sandkeep list shows yours")
    return found


def _expiry(now: float, lifetime: Lifetime) -> float | None:
    ends = [now + seconds for seconds in (lifetime.ttl, lifetime.grace) if seconds is not None]
    return min(ends) if ends else None


def _changed(spec: Spec, changes: Changes) -> Spec:
    limits = Limits(
        cpus=spec.limits.cpus if changes.cpus is None else changes.cpus,
        memory=spec.limits.memory if changes.memory is None else changes.memory,
        disk=spec.limits.disk if changes.disk is None else changes.disk,
        pids=spec.limits.pids if changes.pids is None else changes.pids,
    )
    return replace(
        spec,
        limits=limits,
        labels=spec.labels if changes.labels is None else changes.labels,
        lifetime=changes.lifetime or spec.lifetime,
        pause_or_disk=spec.pause_or_disk if changes.pause_or_disk is None else changes.pause_or_disk,
    )


def _check_stays(existing: Sandbox) -> None:
    """Raises Busy when a create meets one that is about to be gone."""
    if existing.status.phase is Phase.DELETING:
        raise Busy("it is being deleted", hint="try again in a moment", retry_after=1)


def _check_pause(sandbox: Sandbox, hold: Hold) -> None:
    if sandbox.status.phase in (Phase.STOPPED, Phase.FAILED):
        raise Conflict(f"it is {sandbox.status.phase}, not running", hint="start it first: sandkeep start")
    if hold is Hold.DISK and sandbox.spec.persistence is not Persistence.FULL:
        raise Unsupported(
            f"pause to disk keeps memory, and persistence={sandbox.spec.persistence} does not",
            hint="pause with --hold=memory, or stop it (a volume keeps its disk)",
            field="hold",
        )
