"""Sandboxes: create, look, change, delete."""

from typing import Annotated

from fastapi import APIRouter, Body, Header, Query, Response

from sandkeep.domain.errors import InvalidArgument, NotFound
from sandkeep.domain.names import check_labels
from sandkeep.domain.sandbox import Hold, Phase
from sandkeep.domain.why import EVENTS, explain
from sandkeep.edge.api import cursors, shapes
from sandkeep.edge.api.services import Caller, Using
from sandkeep.wire.sandboxes import (
    LogView,
    PauseRequest,
    ReceiptView,
    SandboxCreate,
    SandboxPatch,
    SandboxView,
    StartRequest,
    StatsView,
    WhyView,
)
from sandkeep.wire.sandboxes import Phase as WirePhase
from sandkeep.wire.shape import Page

router = APIRouter(prefix="/v1/sandboxes", tags=["sandboxes"])
_MAX_WAIT = 3600.0


@router.post("", status_code=201, responses={200: {"model": SandboxView}})
async def create_sandbox(
    asked: SandboxCreate,
    who: Caller,
    use: Using,
    response: Response,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> SandboxView:
    """With a name: get-or-create; 200 when it existed with the same spec. Running and answering when this returns."""
    spec = shapes.spec(asked)
    if asked.source is None:
        found, made = await use.sandboxes.create(who.project_id, asked.name, spec, idempotency_key, who.key_id)
    else:
        source, _, snapshot = asked.source.partition("@")
        if not source or not snapshot:
            raise InvalidArgument(f"source {asked.source[:80]!r} is not NAME@SNAPSHOT", field="source")
        found, made = await use.forks.from_snapshot(
            who.project_id, asked.name, spec, source, snapshot, idempotency_key, who.key_id
        )
    response.status_code = 201 if made else 200
    return shapes.sandbox(found)


@router.get("")
async def list_sandboxes(
    who: Caller,
    use: Using,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    label: Annotated[list[str] | None, Query()] = None,
    phase: Annotated[list[WirePhase] | None, Query()] = None,
    name: str | None = None,
) -> Page[SandboxView]:
    """Newest first."""
    found = await use.sandboxes.page(
        who.project_id,
        limit=limit + 1,
        after=cursors.decode(cursor),
        labels=_labels(label or []),
        phases=[Phase(p) for p in phase or []],
        name=name,
    )
    shown = found[:limit]
    following = cursors.encode(shown[-1].created_at, shown[-1].id) if len(found) > limit else None
    return Page(items=[shapes.sandbox(s) for s in shown], next_cursor=following)


def _labels(asked: list[str]) -> dict[str, str]:
    labels = {}
    for item in asked:
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise InvalidArgument(f"label {item[:80]!r} is not key=value", field="label")
        labels[key] = value
    return check_labels(labels)


@router.get("/{ref}")
async def show_sandbox(ref: str, who: Caller, use: Using) -> SandboxView:
    return shapes.sandbox(await use.sandboxes.get(who.project_id, ref))


@router.patch("/{ref}")
async def update_sandbox(ref: str, asked: SandboxPatch, who: Caller, use: Using) -> SandboxView:
    """Labels, limits, lifetime. Limits take effect on the running machine."""
    current = await use.sandboxes.get(who.project_id, ref)
    changed = await use.sandboxes.update(who.project_id, ref, shapes.changes(asked, current.spec.lifetime))
    return shapes.sandbox(changed)


@router.delete("/{ref}", status_code=204)
async def delete_sandbox(ref: str, who: Caller, use: Using) -> Response:
    """From every phase. Nothing of it is left when this returns."""
    await use.sandboxes.delete(who.project_id, ref)
    return Response(status_code=204)


@router.post("/{ref}/pause")
async def pause_sandbox(
    ref: str, who: Caller, use: Using, asked: Annotated[PauseRequest, Body(default_factory=PauseRequest)]
) -> SandboxView:
    """hold=disk (persistence=full): memory, processes and disk as one generation; the host's memory is freed.
    hold=memory: frozen in place."""
    return shapes.sandbox(await use.sandboxes.pause(who.project_id, ref, Hold(asked.hold), asked.or_disk))


@router.post("/{ref}/resume")
async def resume_sandbox(ref: str, who: Caller, use: Using) -> SandboxView:
    await use.archives.bring_back(who.project_id, ref)
    return shapes.sandbox(await use.sandboxes.resume(who.project_id, ref))


@router.post("/{ref}/stop")
async def stop_sandbox(ref: str, who: Caller, use: Using) -> SandboxView:
    """Ends its processes, keeps its disk (an ephemeral one is deleted)."""
    return shapes.sandbox(await use.sandboxes.stop(who.project_id, ref))


@router.post("/{ref}/start")
async def start_sandbox(
    ref: str, who: Caller, use: Using, asked: Annotated[StartRequest, Body(default_factory=StartRequest)]
) -> SandboxView:
    """A new machine on the kept disk. rescue: its limit is a tenth higher (64 MiB to 1 GiB) until the next stop, or start
    without rescue."""
    await use.archives.bring_back(who.project_id, ref)
    return shapes.sandbox(await use.sandboxes.start(who.project_id, ref, rescue=asked.rescue))


@router.get("/{ref}/wait")
async def wait_for_sandbox(
    ref: str,
    who: Caller,
    use: Using,
    phase: Annotated[list[WirePhase], Query()],
    timeout: Annotated[float, Query(gt=0, le=_MAX_WAIT)] = 60.0,
) -> SandboxView:
    """Until it is in one of these phases; 504 after `timeout` seconds."""
    found = await use.sandboxes.wait(who.project_id, ref, {Phase(p) for p in phase}, timeout)
    return shapes.sandbox(found)


@router.get("/{ref}/why")
async def why_sandbox(ref: str, who: Caller, use: Using) -> WhyView:
    """What it is doing, since when, why, what comes next and when, and what its owner can do."""
    found = await use.sandboxes.get(who.project_id, ref)
    return shapes.why(found, explain(found, await use.events.latest(found.id, EVENTS)))


@router.post("/{ref}/heartbeat", status_code=204)
async def heartbeat(ref: str, who: Caller, use: Using) -> Response:
    """The client of a sandbox with `grace` is still there."""
    await use.sandboxes.heartbeat(who.project_id, ref)
    return Response(status_code=204)


@router.get("/{ref}/receipt")
async def show_receipt(ref: str, who: Caller, use: Using) -> ReceiptView:
    """What was checked when it last came back (resume, rollback), or was forked. 404 when it never did."""
    sandbox = await use.sandboxes.get(who.project_id, ref)
    found = await use.runner.receipt(sandbox.id)
    if found is None:
        raise NotFound("there is no receipt: it has never been resumed from disk, rolled back or forked")
    return shapes.receipt(found)


@router.get("/{ref}/stats")
async def sandbox_stats(ref: str, who: Caller, use: Using) -> StatsView:
    found = await use.sandboxes.get(who.project_id, ref)
    usages = await use.runner.usage([found.id])
    usage = usages[0] if usages else None
    return StatsView(
        sandbox_id=found.id,
        cpu_seconds=usage.cpu_seconds if usage else None,
        memory=usage.memory if usage else None,
        memory_limit=found.spec.limits.memory,
        processes=usage.processes if usage else None,
        disk=usage.disk if usage else None,
        disk_limit=(usage and usage.disk_limit) or found.spec.limits.disk,
    )


@router.get("/{ref}/logs")
async def sandbox_logs(
    ref: str, who: Caller, use: Using, limit: Annotated[int, Query(ge=1, le=1 << 20)] = 65536
) -> LogView:
    """The end of what the runtime and the agent printed."""
    found = await use.sandboxes.get(who.project_id, ref)
    return LogView(text=await use.runner.log(found.id, limit))
