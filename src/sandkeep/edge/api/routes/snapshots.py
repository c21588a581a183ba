"""Snapshots of a sandbox: keep a moment, go back to it, make others from it."""

from typing import Annotated

from fastapi import APIRouter, Body, Header, Response

from sandkeep.domain.snapshot import Cause, SnapshotKind
from sandkeep.edge.api import shapes
from sandkeep.edge.api.services import Caller, Using
from sandkeep.wire.sandboxes import SandboxView
from sandkeep.wire.shape import Page
from sandkeep.wire.snapshots import (
    CommitRequest,
    ForkRequest,
    PromoteRequest,
    RollbackRequest,
    SnapshotCreate,
    SnapshotView,
)

router = APIRouter(prefix="/v1/sandboxes/{ref}", tags=["snapshots"])


@router.post("/snapshots", status_code=201)
async def create_snapshot(
    ref: str,
    who: Caller,
    use: Using,
    asked: Annotated[SnapshotCreate, Body(default_factory=SnapshotCreate)],
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> SnapshotView:
    """Of this moment, in any settled phase; what runs runs on. Durable when this returns."""
    made = await use.snapshots.create(
        who.project_id,
        ref,
        kind=SnapshotKind(asked.kind),
        name=asked.name,
        tags=tuple(asked.tags),
        reason="before a command" if asked.cause == "exec" else "asked for",
        cause=Cause(asked.cause),
        key=idempotency_key,
    )
    return shapes.snapshot(made)


@router.get("/snapshots")
async def list_snapshots(ref: str, who: Caller, use: Using) -> Page[SnapshotView]:
    """All of them, oldest first."""
    found = await use.snapshots.page(who.project_id, ref)
    sizes = await use.snapshots.sizes(found[0].sandbox_id) if found else None
    return Page(items=[shapes.snapshot(snapshot, sizes) for snapshot in found])


@router.get("/snapshots/{snapshot}")
async def show_snapshot(ref: str, snapshot: str, who: Caller, use: Using) -> SnapshotView:
    """By name or id."""
    found = await use.snapshots.get(who.project_id, ref, snapshot)
    return shapes.snapshot(found, await use.snapshots.sizes(found.sandbox_id))


@router.delete("/snapshots/{snapshot}", status_code=204)
async def delete_snapshot(ref: str, snapshot: str, who: Caller, use: Using) -> Response:
    """Those that came from it stay whole."""
    await use.snapshots.delete(who.project_id, ref, snapshot)
    return Response(status_code=204)


@router.post("/commit", status_code=201)
async def commit_session(
    ref: str,
    who: Caller,
    use: Using,
    asked: Annotated[CommitRequest, Body(default_factory=CommitRequest)],
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> SnapshotView:
    """Of a sandbox with persistence=snapshot: the disk as it is now is where its next sessions start, and a snapshot."""
    return shapes.snapshot(await use.snapshots.commit(who.project_id, ref, asked.name, idempotency_key))


@router.post("/promote")
async def promote_fork(
    ref: str,
    asked: PromoteRequest,
    who: Caller,
    use: Using,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> SandboxView:
    """The state of this fork becomes that of `into`, which keeps its id, name, address, policies and identity. Both moments are
    snapshots of it afterwards: the one before, and the one that it goes on from."""
    kind = SnapshotKind(asked.kind) if asked.kind else None
    done = await use.promotion.promote(
        who.project_id, ref, asked.into, kind=kind, delete_others=asked.delete_others, key=idempotency_key
    )
    return shapes.sandbox(done)


@router.post("/rollback")
async def rollback_sandbox(ref: str, asked: RollbackRequest, who: Caller, use: Using) -> SandboxView:
    """Back to a snapshot in place. It runs again when it ran before, on a new machine; else it is stopped, or, with memory,
    paused at that moment."""
    kind = SnapshotKind(asked.kind) if asked.kind else None
    done = await use.snapshots.rollback(who.project_id, ref, asked.snapshot, kind=kind, keep_before=asked.keep_before)
    return shapes.sandbox(done)


@router.post("/fork", status_code=201)
async def fork_sandbox(
    ref: str,
    who: Caller,
    use: Using,
    asked: Annotated[ForkRequest, Body(default_factory=ForkRequest)],
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> Page[SandboxView]:
    """New sandboxes from a snapshot, all or none, each with an identity of its own; running and answering when this
    returns."""
    made = await use.forks.make(
        who.project_id,
        ref,
        asked.snapshot,
        kind=SnapshotKind(asked.kind) if asked.kind else None,
        count=asked.count,
        name=asked.name,
        key=idempotency_key,
        caller=who.key_id,
    )
    return Page(items=[shapes.sandbox(sandbox) for sandbox in made])
