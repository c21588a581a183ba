"""The reconciler: what crashes, deadlines, timers and orphans leave. Nothing here is needed to make a request fast."""

import anyio

from sandkeep.contracts.clock import Clock
from sandkeep.contracts.runner import NodeInfo, Runner
from sandkeep.control import settlement
from sandkeep.control.catchup import Catchup
from sandkeep.control.events import Events
from sandkeep.control.expiries import Expiries
from sandkeep.control.nodes import Nodes
from sandkeep.control.rehearsals import Rehearsals
from sandkeep.control.restarts import Restarter
from sandkeep.control.retention import Kept, Retention
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.control.schedule import Schedule
from sandkeep.control.snapshots import Snapshots
from sandkeep.control.templates import BUILD_LABEL, Templates
from sandkeep.control.ticks import Ticks, expired, postpone
from sandkeep.control.timelines import Timelines
from sandkeep.domain.errors import SandkeepError, Unavailable
from sandkeep.domain.event import EventKind
from sandkeep.domain.node import Fact, FactKind, Observed
from sandkeep.domain.sandbox import DEADLINES, TRANSITIONAL, Persistence, Phase, Sandbox
from sandkeep.lib.retry import delays
from sandkeep.store import nodes as node_store
from sandkeep.telemetry.log import log

_STOPPED_FOR_GOOD = "ephemeral: deleted because it stopped"
_TICK = 1.0
_FULL_EVERY = 15.0
_APART_LOOK = 1.0

_FACT_EVENT = {
    FactKind.MACHINE_EXITED: EventKind.SANDBOX_EXITED,
    FactKind.OUT_OF_MEMORY: EventKind.SANDBOX_OUT_OF_MEMORY,
}


class Reconciler:
    def __init__(
        self,
        events: Events,
        sandboxes: Sandboxes,
        templates: Templates,
        snapshots: Snapshots,
        timelines: Timelines,
        rehearsals: Rehearsals,
        nodes: Nodes,
        runner: Runner,
        clock: Clock,
        default_project: str,
        kept: Kept,
    ) -> None:
        self._events = events
        self._sandboxes = sandboxes
        self._templates = templates
        self._snapshots = snapshots
        self._rehearsals = rehearsals
        self._nodes = nodes
        self._ahead = Catchup(events, sandboxes, runner, clock)
        self._runner = runner
        self._clock = clock
        self._default_project = default_project
        self._late: set[str] = set()
        self.node: NodeInfo | None = None
        self.apart = "the node's runner does not answer"
        """Why there is no node; of the last try."""
        self._expiries = Expiries(events, sandboxes, runner, nodes, clock, lambda: self.node is not None)
        self._restarter = Restarter(events, sandboxes, clock, self._joined)
        self._schedule = Schedule(events, sandboxes, snapshots, timelines, runner, clock, self._joined)
        self._retention = Retention(events, clock, kept)

    async def run(self) -> None:
        """Until cancelled: stay connected to the node, and look after timers and deadlines."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_connected)
            tasks.start_soon(self._timers)
            tasks.start_soon(self._restarter.run)
            tasks.start_soon(self._retention.run)
            tasks.start_soon(self._schedule.run)
            tasks.start_soon(self._rehearsals.run, self._joined)

    def _joined(self) -> bool:
        """To a node that is of this installation."""
        return self.node is not None and self._nodes.standing.paired

    # -- the node

    async def _keep_connected(self) -> None:
        waits = delays(0.05, cap=2.0)
        while True:
            try:
                node = await self._runner.handshake()
                self._sandboxes.endpoints.forget_all()
                standing = await self._nodes.meet(node)
                await self._templates.reconcile(
                    self._default_project, paired=standing.paired, adding=standing.paired or not standing.missing
                )
                await self._ahead.graces()
                await self.compare(first=self.node is None)
                self.node = node
                log("runner.connected", node=node.node_id, version=node.version)
                waits = delays(0.05, cap=2.0)
                if standing.paired:
                    await self._follow(node)
                else:
                    await self._stay_apart(node)
            except SandkeepError as error:
                self.apart = error.message
                if self.node is not None:
                    log("runner.lost", "warning", error=error.message)
            self.node = None
            await anyio.sleep(next(waits))

    async def _follow(self, node: NodeInfo) -> None:
        """Facts of the node as they come; returns or raises when the connection ends."""
        async with self._events.change() as ledger:
            last = await node_store.last_fact(ledger.transaction, node.node_id)
        async for fact in self._runner.watch(last):
            waits = delays(0.2, cap=2.0)
            while not await self._taken(node, fact):
                await anyio.sleep(next(waits))
            await self._runner.acknowledge(fact.seq)

    async def _taken(self, node: NodeInfo, fact: Fact) -> bool:
        """False while the database is away: that is no reason to leave the node."""
        try:
            await self._take(fact)
            async with self._events.change() as ledger:
                await node_store.save_last_fact(ledger.transaction, node.node_id, self._default_project, fact.seq)
        except Unavailable as error:
            if error.details.get("part") != "database":
                raise
            return False
        return True

    async def _stay_apart(self, node: NodeInfo) -> None:
        """Until somebody has paired them, or the node restarts. Its facts wait for whom they concern."""
        while not self._nodes.standing.paired:
            await self._clock.sleep(_APART_LOOK)
            if (await self._runner.handshake()).started_at != node.started_at:
                return

    async def _take(self, fact: Fact) -> None:
        sandbox = await self._sandboxes.by_id(fact.sandbox_id or "")
        if sandbox is None:
            return
        if fact.data.get("deleted"):
            await self._sandboxes.forget(sandbox, f"ephemeral: {fact.data.get('reason', 'its machine ended')}")
            return
        if fact.kind is FactKind.PROCESS_KILLED:
            await self._sandboxes.note_out_of_memory(
                sandbox, str(fact.data.get("reason", "")), fact.data.get("processes")
            )
            if sandbox.spec.timeline.on_out_of_memory:
                self._schedule.expect()
            return
        kind = _FACT_EVENT.get(fact.kind)
        if kind is None:
            return
        observed = await self._runner.show(sandbox.id)
        if observed is None:
            return
        if observed.phase is Phase.DELETED:
            await self._sandboxes.forget(sandbox, observed.reason or "deleted on the node")
            return
        if self._sandboxes.busy(sandbox.id) or observed.phase in TRANSITIONAL:
            self._late.add(sandbox.id)  # whoever changes it writes what the node says then, or the next round does
        elif settlement.differs(sandbox, observed) and not await self._sandboxes.follow(sandbox, observed, kind):
            self._late.add(sandbox.id)

    async def compare(self, *, first: bool) -> None:
        """Every sandbox in the store against the node. `first`: after a restart, when no change is under way here."""
        # The store first: what changes after that has another epoch, and what is written here then is refused.
        stored = await self._sandboxes.everywhere()
        seen = {observed.id: observed for observed in await self._runner.sandboxes()}
        for sandbox in stored:
            if self._sandboxes.busy(sandbox.id) and sandbox.status.phase is not Phase.DELETING:
                continue
            try:
                # Asked once more: what was deleted, or made since the look, is not lost.
                observed = seen.get(sandbox.id) or await self._runner.show(sandbox.id)
                if observed is None and not self._nodes.standing.paired:
                    continue
                if observed is not None:
                    sandbox = await self._ahead.sandbox(sandbox, observed)
                await self._settle(sandbox, observed, first=first)
            except SandkeepError as error:
                log("reconcile.failed", "warning", sandbox=sandbox.id, error=error.message)
        try:
            await self._snapshots.reconcile(paired=self._nodes.standing.paired)
        except SandkeepError as error:
            log("reconcile.failed", "warning", what="snapshots", error=error.message)

    async def _settle(self, sandbox: Sandbox, observed: Observed | None, *, first: bool) -> None:
        phase = sandbox.status.phase
        age = self._clock.now() - sandbox.status.since
        # The node has ended the change of this epoch, and nobody here waits for the answer.
        ended = observed is not None and observed.epoch >= sandbox.epoch and observed.phase not in TRANSITIONAL
        overdue = first or ended or not 0 <= age < DEADLINES.get(phase, 0)
        if phase is Phase.DELETING:  # acknowledged or not, it ends deleted; nothing under way holds it up
            if not self._sandboxes.deleting(sandbox.id):
                await self._sandboxes.finish_delete(sandbox)
            return
        if first and BUILD_LABEL in sandbox.spec.labels:
            await self._sandboxes.delete(sandbox.project_id, sandbox.id, reason="its template build was interrupted")
            return
        if observed is not None and observed.phase is Phase.DELETED:
            await self._sandboxes.forget(sandbox, observed.reason or "deleted on the node")
            return
        if sandbox.spec.persistence is Persistence.EPHEMERAL and phase is Phase.STOPPED:
            await self._sandboxes.delete(sandbox.project_id, sandbox.id, reason=_STOPPED_FOR_GOOD)
            return
        if phase is Phase.NEW or phase in TRANSITIONAL:
            if not overdue:
                return
            if observed is None:
                if sandbox.epoch == 1:
                    # Not only forgotten: the call of a server that died may still be making it.
                    await self._sandboxes.delete(sandbox.project_id, sandbox.id, reason="its creation was interrupted")
                else:
                    await self._lost(sandbox)
                return
            if observed.phase not in TRANSITIONAL:
                await self._follow_node(sandbox, observed)
            return
        if observed is None:
            if phase is not Phase.FAILED:
                await self._lost(sandbox)
            return
        if observed.phase not in TRANSITIONAL and settlement.differs(sandbox, observed):
            await self._follow_node(sandbox, observed)

    async def _follow_node(self, sandbox: Sandbox, observed: Observed) -> None:
        if await self._sandboxes.follow(sandbox, observed):
            log("reconcile.acted", sandbox=sandbox.id, was=sandbox.status.phase, now=observed.phase)
            if sandbox.spec.persistence is Persistence.EPHEMERAL and observed.phase is Phase.STOPPED:
                await self._sandboxes.delete(sandbox.project_id, sandbox.id, reason=_STOPPED_FOR_GOOD)

    async def _catch_up(self) -> None:
        """What could not be taken as it came, because the sandbox was being changed."""
        for sandbox_id in list(self._late):
            sandbox, observed = await self._sandboxes.by_id(sandbox_id), await self._runner.show(sandbox_id)
            if sandbox is not None and observed is not None:
                if self._sandboxes.busy(sandbox_id) or observed.phase in TRANSITIONAL:
                    continue
                await self._settle(await self._ahead.sandbox(sandbox, observed), observed, first=False)
            self._late.discard(sandbox_id)

    async def _lost(self, sandbox: Sandbox) -> None:
        await self._sandboxes.settle(sandbox, settlement.lost(sandbox, self._clock.now()))

    # -- timers

    async def _timers(self) -> None:
        last = self._clock.monotonic()
        ticks = Ticks(self._clock, _TICK)
        async with anyio.create_task_group() as tasks:
            while True:
                tick = await ticks.next()
                try:
                    if tick.jumped or tick.frozen:
                        log("clock.distrusted", "warning", jumped=round(tick.jumped), frozen=round(tick.frozen))
                        await postpone(self._events, tick)
                    self._expiries.begin(tasks, await expired(self._events, tick))
                    if self.node is not None:
                        await self._catch_up()
                    if self._clock.monotonic() - last >= _FULL_EVERY and self.node is not None:
                        last = self._clock.monotonic()
                        await self.compare(first=False)
                except SandkeepError as error:
                    last = -_FULL_EVERY  # what an outage left is looked at as soon as it is over
                    log("reconcile.failed", "warning", error=error.message)
