"""Archives of sandboxes and of snapshots: to the object store, and back."""

from typing import Annotated

from fastapi import APIRouter, Body

from sandkeep.edge.api import shapes
from sandkeep.edge.api.services import Caller, Using
from sandkeep.wire.archives import VerifiedView, VerifyRequest, WakeRequest
from sandkeep.wire.sandboxes import SandboxView
from sandkeep.wire.snapshots import SnapshotView

router = APIRouter(prefix="/v1/sandboxes/{ref}", tags=["archives"])


@router.post("/archive")
async def archive_sandbox(ref: str, who: Caller, use: Using) -> SandboxView:
    """What is stopped, or paused on disk, moves to the object store. The local copy goes only after everything was read back
    from there; what fails before leaves it as it was."""
    return shapes.sandbox(await use.archives.archive(who.project_id, ref))


@router.post("/archive/verify")
async def verify_archive(
    ref: str, who: Caller, use: Using, asked: Annotated[VerifyRequest, Body(default_factory=VerifyRequest)]
) -> VerifiedView:
    """Restore its archive into a scratch place, compare it with its manifest, and throw it away. Nothing else changes. As the
    server does by itself with one that chance picks."""
    found = await use.rehearsals.rehearse(who.project_id, ref, asked.snapshot)
    return VerifiedView(intact=found.intact, reason=found.reason, size=found.size, seconds=round(found.seconds, 3))


@router.post("/wake")
async def wake_sandbox(
    ref: str, who: Caller, use: Using, asked: Annotated[WakeRequest, Body(default_factory=WakeRequest)]
) -> SandboxView:
    """Back from the object store, as it was: paused or stopped. Calls (exec, files, start, resume) do this by themselves."""
    return shapes.sandbox(await use.archives.wake(who.project_id, ref, disk_only=asked.disk_only))


@router.post("/snapshots/{snapshot}/archive")
async def archive_snapshot(ref: str, snapshot: str, who: Caller, use: Using) -> SnapshotView:
    """By name or id. The local copy goes only after everything was read back from the object store. It stays a snapshot, and is
    deleted as any other; a rollback, a fork or a look into it needs it back first."""
    return shapes.snapshot(await use.archives.archive_snapshot(who.project_id, ref, snapshot))


@router.post("/snapshots/{snapshot}/wake")
async def wake_snapshot(ref: str, snapshot: str, who: Caller, use: Using) -> SnapshotView:
    """By name or id: back from the object store, as it was. It then shares nothing with others, and takes its whole size."""
    return shapes.snapshot(await use.archives.wake_snapshot(who.project_id, ref, snapshot))
