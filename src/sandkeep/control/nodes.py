"""Whether server and node are of one installation, and what follows from it. Called by the reconciler and the REST door.

The installation is known by the id of its default project, which was made with the database. The node keeps the id of the
one that it last served, the database the ids of its nodes.
"""

from dataclasses import dataclass

from sandkeep.contracts.runner import NodeInfo, Runner
from sandkeep.control.events import Events
from sandkeep.domain.sandbox import Phase, Sandbox
from sandkeep.store import nodes as node_store
from sandkeep.store import sandboxes as sandbox_store
from sandkeep.telemetry.log import log


@dataclass(frozen=True)
class Standing:
    """unknown: sandboxes that the node alone knows; missing: those that the database alone lists. Not `paired`: what only
    one of the two knows is left alone, and `reason` says why."""

    paired: bool
    reason: str = ""
    unknown: int = 0
    missing: int = 0


class Nodes:
    def __init__(self, events: Events, runner: Runner, installation: str) -> None:
        self._events = events
        self._runner = runner
        self.installation = installation
        self.standing = Standing(False, "the node was not met yet")

    async def meet(self, node: NodeInfo) -> Standing:
        """At each connection: look at both, and pair them where nothing can be lost by it."""
        standing = await self.look(node)
        if standing.paired:
            await self.pair(node)
        else:
            log("node.apart", "warning", node=node.node_id, reason=standing.reason)
        self.standing = standing
        return standing

    async def look(self, node: NodeInfo) -> Standing:
        on_node = {o.id for o in await self._runner.sandboxes() if o.phase is not Phase.DELETED}
        async with self._events.change() as ledger:
            stored = await sandbox_store.everywhere(ledger.transaction)
            known = node.node_id in await node_store.known(ledger.transaction)
        rows = {sandbox.id for sandbox in stored}
        missing = len({sandbox.id for sandbox in stored if _should_be_there(sandbox)} - on_node)
        return standing_of(self.installation, node, known=known, unknown=len(on_node - rows), missing=missing)

    async def pair(self, node: NodeInfo) -> None:
        async with self._events.change() as ledger:
            await node_store.add(ledger.transaction, node.node_id, self.installation)
        if node.installation != self.installation:
            await self._runner.pair(self.installation)
        self.standing = Standing(True, unknown=self.standing.unknown, missing=self.standing.missing)


def _should_be_there(sandbox: Sandbox) -> bool:
    """Not one that is being made or deleted, or is known to be lost."""
    phase = sandbox.status.phase
    return phase not in (Phase.NEW, Phase.DELETING, Phase.FAILED) and not (
        phase is Phase.STARTING and sandbox.epoch == 1
    )


def standing_of(installation: str, node: NodeInfo, *, known: bool, unknown: int, missing: int) -> Standing:
    """`known`: the database has served this node before."""
    ours = node.installation == installation
    first = node.installation is None and known  # a node of a version that did not write it down
    agreed = not unknown and not missing
    if ours or first or agreed:
        return Standing(True, unknown=unknown, missing=missing)
    whose = "another installation" if node.installation else "no installation yet"
    counts = [f"{unknown} sandboxes are unknown to the database"] if unknown else []
    counts += [f"{missing} sandboxes of the database are not on it"] if missing else []
    return Standing(False, f"node {node.node_id} served {whose}: {' and '.join(counts)}", unknown, missing)
