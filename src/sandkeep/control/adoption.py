"""Adoption: sandboxes that the node alone knows come under this control plane. Shown first, done on request.

All is taken from the node's own record; nothing on the node changes.
"""

from dataclasses import dataclass, replace

from sandkeep.contracts.clock import Clock
from sandkeep.contracts.runner import Runner
from sandkeep.control.events import Events, Ledger
from sandkeep.control.nodes import Nodes
from sandkeep.control.templates import BUILD_LABEL
from sandkeep.domain.errors import AlreadyExists, NotFound
from sandkeep.domain.event import EventKind
from sandkeep.domain.ids import body
from sandkeep.domain.names import MAX_NAME, check_name
from sandkeep.domain.node import Observed, SandboxOnNode, TemplateOnNode
from sandkeep.domain.restart import Restarts
from sandkeep.domain.sandbox import Phase, Sandbox, Status
from sandkeep.domain.template import Template, TemplatePhase
from sandkeep.store import events as event_store
from sandkeep.store import keys as key_store
from sandkeep.store import sandboxes as store
from sandkeep.store import templates as template_store


@dataclass(frozen=True)
class Candidate:
    """A sandbox that the node alone knows. name: what it will be called; notes: what is out of the ordinary; held: why
    it is not adopted unless it is named."""

    observed: Observed
    on_node: SandboxOnNode
    name: str | None
    notes: tuple[str, ...] = ()
    held: str = ""

    @property
    def id(self) -> str:
        return self.observed.id


class Adoption:
    def __init__(self, events: Events, nodes: Nodes, runner: Runner, clock: Clock) -> None:
        self._events = events
        self._nodes = nodes
        self._runner = runner
        self._clock = clock

    async def plan(self, project_id: str) -> list[Candidate]:
        """By id. Changes nothing."""
        observed = {o.id: o for o in await self._runner.sandboxes()}
        templates = {template.id: template for template in await self._runner.templates()}
        async with self._events.change() as ledger:
            known = {sandbox.id for sandbox in await store.everywhere(ledger.transaction)}
        gone = (Phase.DELETED, Phase.DELETING)
        unknown = sorted(i for i, o in observed.items() if i not in known and o.phase not in gone)
        found = []
        taken: set[str] = set()
        for sandbox_id in unknown:
            on_node = await self._runner.export_record(sandbox_id)
            if on_node is None:  # deleted meanwhile
                continue
            async with self._events.change() as ledger:
                candidate = await self._candidate(ledger, project_id, observed[sandbox_id], on_node, templates, taken)
            if candidate.name:
                taken.add(candidate.name)
            found.append(candidate)
        return found

    async def _candidate(
        self,
        ledger: Ledger,
        project_id: str,
        observed: Observed,
        on_node: SandboxOnNode,
        templates: dict[str, TemplateOnNode],
        taken: set[str],
    ) -> Candidate:
        notes, held, name = [], "", on_node.name
        project = await self._project(ledger, project_id, on_node)
        if name and (name in taken or await store.get(ledger.transaction, project, name)):
            notes.append(f"the name {name} is taken: it will have none")
            name = None
        template = on_node.spec.template
        if await template_store.get(ledger.transaction, project, template) is None:
            there = template in templates
            notes.append(
                f"its template {on_node.spec.template_name} "
                + ("comes back, too" if there else "is on the node no longer: it works without")
            )
        if await event_store.deleted(ledger.transaction, [observed.id]):
            held = "it was deleted here, and its record came back"
        elif BUILD_LABEL in on_node.spec.labels:
            held = "it is what an interrupted template build left: it will be deleted at the next start"
        return Candidate(observed, on_node, name, tuple(notes), held)

    async def adopt(self, project_id: str, ids: list[str] | None, names: dict[str, str]) -> list[Candidate]:
        """These, or all that nothing holds back (`ids` None), which also pairs server and node. `names`: id -> the name
        to give it. Raises NotFound, AlreadyExists, InvalidArgument, before anything is adopted."""
        candidates = {candidate.id: candidate for candidate in await self.plan(project_id)}
        strangers = [sandbox_id for sandbox_id in [*(ids or []), *names] if sandbox_id not in candidates]
        if strangers:
            raise NotFound(
                f"the node alone knows no {strangers[0][:64]!r}", hint="sandkeep node adopt --plan", ids=strangers[:20]
            )
        chosen = [c for c in candidates.values() if (c.id in ids if ids is not None else not c.held)]
        chosen = [replace(c, name=check_name(names[c.id])) if c.id in names else c for c in chosen]
        templates = {template.id: template for template in await self._runner.templates()}
        async with self._events.change() as ledger:
            for candidate in chosen:
                await self._take(ledger, project_id, candidate, templates)
        node = await self._runner.handshake()
        if ids is None or (await self._nodes.look(node)).paired:
            await self._nodes.pair(node)
        return chosen

    async def _take(
        self, ledger: Ledger, caller: str, candidate: Candidate, templates: dict[str, TemplateOnNode]
    ) -> None:
        """Its epoch goes on above the node's; its lifetime counts from now, so that none ends by being adopted."""
        observed, on_node, now = candidate.observed, candidate.on_node, self._clock.now()
        project = await self._project(ledger, caller, on_node)
        if candidate.name and await store.get(ledger.transaction, project, candidate.name):
            raise AlreadyExists(f"a sandbox named {candidate.name} exists", hint="choose another: --rename")
        sandbox = Sandbox(
            id=observed.id,
            project_id=project,
            name=candidate.name,
            spec=on_node.spec,
            status=Status(observed.phase, observed.hold, observed.reason, now, observed.conditions),
            epoch=observed.epoch,
            created_at=on_node.created_at or now,
            updated_at=now,
            expires_at=on_node.spec.lifetime.ends(now),
            restarts=Restarts(machine=observed.exited),  # that it ended by itself is no news
        )
        await store.add(ledger.transaction, sandbox)
        await self._bring_template_back(ledger, project, templates.get(on_node.spec.template))
        reason = f"the node's record of it, {observed.phase}"
        await ledger.tell(EventKind.SANDBOX_ADOPTED, project, observed.id, reason, name=candidate.name)

    async def _bring_template_back(self, ledger: Ledger, project: str, found: TemplateOnNode | None) -> None:
        if found is None or await template_store.get(ledger.transaction, project, found.id):
            return
        name = found.name
        if await template_store.get(ledger.transaction, project, name):
            name = f"{name[: MAX_NAME - 7].rstrip('-')}-{body(found.id)[:6]}"
        template = Template(found.id, project, name, TemplatePhase.READY, found.created_at, found.size, found.parent)
        await template_store.add(ledger.transaction, template)
        await ledger.tell(EventKind.TEMPLATE_READY, project, found.id, name=name)

    async def _project(self, ledger: Ledger, caller: str, on_node: SandboxOnNode) -> str:
        """Its own where that exists here, else the caller's: a database that was lost took its projects along."""
        known = await key_store.project_exists(ledger.transaction, on_node.project_id)
        return on_node.project_id if known else caller
