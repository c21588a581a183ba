"""The timeline of a sandbox: when snapshots of it are made by rule, and which of them stay."""

from typing import Annotated

from fastapi import APIRouter, Body

from sandkeep.control.timelines import Pruning
from sandkeep.domain.sandbox import Sandbox
from sandkeep.edge.api import shapes, timelines
from sandkeep.edge.api.services import Caller, Using
from sandkeep.wire.timeline import PruneRequest, PruneView, TimelineSet, TimelineView, VerdictView

router = APIRouter(prefix="/v1/sandboxes/{ref}/timeline", tags=["timeline"])


@router.get("")
async def show_timeline(ref: str, who: Caller, use: Using) -> TimelineView:
    found = await use.sandboxes.get(who.project_id, ref)
    return _shown(found, await use.timelines.next_at(found))


@router.put("")
async def set_timeline(ref: str, asked: TimelineSet, who: Caller, use: Using) -> TimelineView:
    """The whole of it: what is left out is off. It goes with the sandbox, and with its forks."""
    changed = await use.timelines.set(who.project_id, ref, timelines.asked_for(asked))
    return _shown(changed, await use.timelines.next_at(changed))


@router.post("/prune")
async def prune_timeline(
    ref: str, who: Caller, use: Using, asked: Annotated[PruneRequest, Body(default_factory=PruneRequest)]
) -> PruneView:
    """What its rules keep no longer goes now, as it would by itself; `plan` only says what that is."""
    act = use.timelines.plan if asked.plan else use.timelines.prune
    found = await use.sandboxes.get(who.project_id, ref)
    return _pruning(found, await act(who.project_id, found.id), done=not asked.plan)


def _shown(found: Sandbox, next_at: float | None) -> TimelineView:
    due = None if next_at is None else shapes.moment(next_at)
    return TimelineView(sandbox_id=found.id, next_at=due, **timelines.fields(found.spec.timeline))


def _pruning(sandbox: Sandbox, found: Pruning, *, done: bool) -> PruneView:
    return PruneView(
        items=[
            VerdictView(
                snapshot=shapes.snapshot(verdict.snapshot, found.sizes), keep=list(verdict.keep), why=verdict.why
            )
            for verdict in found.verdicts
        ],
        done=done,
        total=found.total,
        budget=sandbox.spec.timeline.budget,
    )
