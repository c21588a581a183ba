"""The node behind the server: what it has, what it alone knows, what lies there in quarantine. For administrators: those
with a key of the default project."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from sandkeep.domain.errors import PermissionDenied
from sandkeep.domain.principal import Principal
from sandkeep.domain.sandbox import Phase, RuntimeKind
from sandkeep.edge.api import shapes
from sandkeep.edge.api.services import Caller, Using
from sandkeep.wire.platform import (
    AdoptionRequest,
    AdoptionView,
    CapacityView,
    NodeView,
    QuarantinedView,
    QuarantineRestore,
)
from sandkeep.wire.sandboxes import SandboxView
from sandkeep.wire.shape import Page

router = APIRouter(prefix="/v1/node", tags=["platform"])


async def administrator(who: Caller, use: Using) -> Principal:
    """Raises PermissionDenied: what the node alone knows may be anybody's."""
    if who.project_id != use.nodes.installation:
        raise PermissionDenied("this needs a key of the default project")
    return who


Administrator = Annotated[Principal, Depends(administrator)]


@router.get("")
async def show_node(who: Caller, use: Using) -> NodeView:
    node = use.reconciler.node or await use.runner.handshake()
    standing = use.nodes.standing
    counts = await use.nodes.look(node)
    on_node = [o for o in await use.runner.sandboxes() if o.phase is not Phase.DELETED]
    return NodeView(
        node_id=node.node_id,
        version=node.version,
        disk_driver=node.disks.kind,
        disk_notes=list(node.disks.notes),
        capacity=CapacityView(**asdict(await use.runner.capacity())),
        paired=standing.paired,
        reason=standing.reason,
        sandboxes=len(on_node) - counts.unknown,
        unknown=counts.unknown,
        quarantined=len(await use.runner.quarantined()),
    )


@router.get("/adoption")
async def plan_adoption(who: Administrator, use: Using) -> Page[AdoptionView]:
    """Sandboxes that the node alone knows, and what adopting them would make of them. Changes nothing."""
    return Page(items=[shapes.candidate(found) for found in await use.adoption.plan(who.project_id)])


@router.post("/adoption")
async def adopt(asked: AdoptionRequest, who: Administrator, use: Using) -> Page[AdoptionView]:
    """Takes them over, as the node's records say. Answers with what was adopted."""
    found = await use.adoption.adopt(who.project_id, asked.ids, asked.names)
    return Page(items=[shapes.candidate(candidate) for candidate in found])


@router.get("/quarantine")
async def list_quarantine(who: Administrator, use: Using) -> Page[QuarantinedView]:
    """What the pool holds and no record names."""
    return Page(items=[shapes.quarantined(found) for found in await use.quarantine.page()])


@router.post("/quarantine/{quarantined_id}/restore")
async def restore_quarantined(
    quarantined_id: str, asked: QuarantineRestore, who: Administrator, use: Using
) -> SandboxView:
    """A stopped sandbox on a quarantined disk."""
    runtime = RuntimeKind(asked.runtime) if asked.runtime else None
    return shapes.sandbox(await use.quarantine.restore(who.project_id, quarantined_id, asked.name, runtime))


@router.delete("/quarantine/{quarantined_id}", status_code=204)
async def delete_quarantined(quarantined_id: str, who: Administrator, use: Using) -> Response:
    """For good: a disk with its memory images, one memory image, or a template."""
    await use.quarantine.delete(quarantined_id)
    return Response(status_code=204)
