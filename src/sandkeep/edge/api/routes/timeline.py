"""The timeline of a sandbox: when snapshots of it are made by rule, and which of them stay."""

from typing import Annotated

from fastapi import APIRouter, Body

from sandkeep.control.timelines import Pruning
from sandkeep.domain.quantities import parse_duration, parse_size
from sandkeep.domain.sandbox import Sandbox
from sandkeep.domain.snapshot import SnapshotKind
from sandkeep.domain.timeline import Keep, Timeline
from sandkeep.edge.api import shapes
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
    changed = await use.timelines.set(who.project_id, ref, _timeline(asked))
    return _shown(changed, await use.timelines.next_at(changed))


@router.post("/prune")
async def prune_timeline(
    ref: str, who: Caller, use: Using, asked: Annotated[PruneRequest, Body(default_factory=PruneRequest)]
) -> PruneView:
    """What its rules keep no longer goes now, as it would by itself; `plan` only says what that is."""
    act = use.timelines.plan if asked.plan else use.timelines.prune
    found = await use.sandboxes.get(who.project_id, ref)
    return _pruning(found, await act(who.project_id, found.id), done=not asked.plan)


def _timeline(asked: TimelineSet) -> Timeline:
    """Raises InvalidArgument."""
    return Timeline(
        every=None if asked.every is None else parse_duration(asked.every, "every"),
        kind=SnapshotKind(asked.kind),
        on_exit=asked.on_exit,
        on_out_of_memory=asked.on_out_of_memory,
        on_crash=asked.on_crash,
        keep=Keep(asked.keep_last, asked.keep_hourly, asked.keep_daily, asked.keep_weekly, asked.keep_monthly),
        keep_tags=tuple(asked.keep_tags),
        min_age=parse_duration(asked.min_age, "min_age"),
        budget=None if asked.budget is None else parse_size(asked.budget, "budget"),
        asked_too=asked.asked_too,
    )


def _shown(found: Sandbox, next_at: float | None) -> TimelineView:
    timeline = found.spec.timeline
    return TimelineView(
        sandbox_id=found.id,
        every=timeline.every,
        kind=timeline.kind.value,
        on_exit=timeline.on_exit,
        on_out_of_memory=timeline.on_out_of_memory,
        on_crash=timeline.on_crash,
        keep_last=timeline.keep.last,
        keep_hourly=timeline.keep.hourly,
        keep_daily=timeline.keep.daily,
        keep_weekly=timeline.keep.weekly,
        keep_monthly=timeline.keep.monthly,
        keep_tags=list(timeline.keep_tags),
        min_age=timeline.min_age,
        budget=timeline.budget,
        asked_too=timeline.asked_too,
        next_at=None if next_at is None else shapes.moment(next_at),
    )


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
