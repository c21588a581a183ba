"""Quarantine: disks whose record the node lost. Looked at, brought back as a stopped sandbox, or removed, on request."""

from dataclasses import replace

from sandkeep.contracts.clock import Clock
from sandkeep.contracts.runner import Runner
from sandkeep.control.events import Events
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.domain.errors import AlreadyExists, Conflict, NotFound
from sandkeep.domain.event import EventKind
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.names import check_name
from sandkeep.domain.node import OperationRef, Quarantined, SandboxOnNode
from sandkeep.domain.sandbox import Limits, Persistence, Phase, RuntimeKind, Sandbox, Spec, Status
from sandkeep.store import sandboxes as store
from sandkeep.store import templates as template_store


class Quarantine:
    def __init__(self, events: Events, sandboxes: Sandboxes, runner: Runner, clock: Clock) -> None:
        self._events = events
        self._sandboxes = sandboxes
        self._runner = runner
        self._clock = clock

    async def page(self) -> list[Quarantined]:
        return await self._runner.quarantined()

    async def restore(self, project_id: str, sandbox_id: str, name: str | None, runtime: RuntimeKind | None) -> Sandbox:
        """A stopped sandbox on the disk: as the server still knows it, else a volume under this name. Raises NotFound,
        AlreadyExists, Conflict."""
        if name is not None:
            check_name(name)
        found = next((q for q in await self.page() if q.id == sandbox_id and q.what == "disk"), None)
        if found is None:
            raise NotFound(f"no disk {sandbox_id[:64]!r} is in quarantine", hint="sandkeep node quarantine list")
        known = await self._sandboxes.by_id(sandbox_id)
        if known is not None:
            return await self._back(known, name)
        now = self._clock.now()
        spec = await self._spec(project_id, found, runtime or RuntimeKind.GVISOR)
        reason = "the node's record of it was lost"
        sandbox = Sandbox(
            id=sandbox_id,
            project_id=project_id,
            name=name,
            spec=spec,
            status=Status(Phase.FAILED, reason=reason, since=now),
            epoch=0,
            created_at=found.changed_at or now,
            updated_at=now,
        )
        async with self._events.change() as ledger:
            if name and await store.get(ledger.transaction, project_id, name):
                raise AlreadyExists(f"a sandbox named {name} exists", hint="choose another name")
            await store.add(ledger.transaction, sandbox)
            await ledger.tell(EventKind.SANDBOX_ADOPTED, project_id, sandbox_id, "its disk in quarantine", name=name)
        return await self._back(sandbox, None)

    async def _back(self, sandbox: Sandbox, name: str | None) -> Sandbox:
        """The row is there (failed, until the node has answered): a crash in between leaves what can be repeated."""
        if sandbox.status.phase is not Phase.FAILED:
            raise Conflict(
                f"the server says {sandbox.status.phase}", hint="wait a moment: it will note that it was lost"
            )
        if name is not None and name != sandbox.name:
            raise Conflict(f"it is still known here as {sandbox.name or sandbox.id}", hint="leave out --name")
        async with self._sandboxes.turn(sandbox.id):
            operation = OperationRef(new_id(IdKind.OPERATION), sandbox.epoch + 1)
            on_node = SandboxOnNode(sandbox.id, sandbox.project_id, sandbox.spec, sandbox.name, sandbox.created_at)
            observed = await self._runner.restore_quarantined(operation, on_node)
            return await self._sandboxes.settle(sandbox, observed, EventKind.SANDBOX_STOPPED)

    async def _spec(self, project_id: str, found: Quarantined, runtime: RuntimeKind) -> Spec:
        async with self._events.change() as ledger:
            template = await template_store.get(ledger.transaction, project_id, found.template or "")
        limits = Limits()
        return Spec(
            template=found.template or "",
            template_name=template.name if template else "unknown",
            runtime=runtime,
            persistence=Persistence.VOLUME,
            limits=replace(limits, disk=found.limit or max(limits.disk, 2 * (found.size or 0))),
        )

    async def delete(self, quarantined_id: str) -> None:
        """For good. Raises NotFound, Conflict."""
        operation = OperationRef(new_id(IdKind.OPERATION), 0)
        await self._runner.delete_quarantined(operation, quarantined_id)
