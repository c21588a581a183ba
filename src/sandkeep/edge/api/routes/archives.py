"""Archives of sandboxes: to the object store, and back."""

from typing import Annotated

from fastapi import APIRouter, Body

from sandkeep.edge.api import shapes
from sandkeep.edge.api.services import Caller, Using
from sandkeep.wire.archives import WakeRequest
from sandkeep.wire.sandboxes import SandboxView

router = APIRouter(prefix="/v1/sandboxes/{ref}", tags=["archives"])


@router.post("/archive")
async def archive_sandbox(ref: str, who: Caller, use: Using) -> SandboxView:
    """What is stopped, or paused on disk, moves to the object store. The local copy goes only after everything was read back
    from there; what fails before leaves it as it was."""
    return shapes.sandbox(await use.archives.archive(who.project_id, ref))


@router.post("/wake")
async def wake_sandbox(
    ref: str, who: Caller, use: Using, asked: Annotated[WakeRequest, Body(default_factory=WakeRequest)]
) -> SandboxView:
    """Back from the object store, as it was: paused or stopped. Calls (exec, files, start, resume) do this by themselves."""
    return shapes.sandbox(await use.archives.wake(who.project_id, ref, disk_only=asked.disk_only))
