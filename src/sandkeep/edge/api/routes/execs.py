"""The buffered exec: one command, one answer."""

from fastapi import APIRouter
from fastapi.responses import Response

from sandkeep.contracts.guest import ExecResult
from sandkeep.domain.errors import GuestUnreachable
from sandkeep.domain.sandbox import Phase
from sandkeep.domain.snapshot import Cause
from sandkeep.edge.api import shapes
from sandkeep.edge.api.services import Caller, Services, Using
from sandkeep.wire.sandboxes import ExecAnswer, ExecRequest

router = APIRouter(prefix="/v1/sandboxes", tags=["exec"])


@router.post("/{ref}/exec", response_model=ExecAnswer)
async def exec_in_sandbox(ref: str, asked: ExecRequest, who: Caller, use: Using) -> Response:
    """Runs a command to its end; wakes a paused or stopped sandbox unless no_resume."""
    done = await _run(use, who.project_id, ref, asked)
    return Response(shapes.exec_answer(done).model_dump_json(), media_type="application/json")


async def _run(use: Services, project_id: str, ref: str, asked: ExecRequest) -> ExecResult:
    request = shapes.exec_request(asked)
    if asked.snapshot_first:
        await use.snapshots.create(project_id, ref, reason="before a command", cause=Cause.EXEC)
    reached = await use.reach.agent(project_id, ref, wake=not asked.no_resume)

    async def run() -> ExecResult:
        async with use.reach.attended(project_id, reached):
            return await use.guest.exec(reached.endpoint, request)

    try:
        return await run()
    except GuestUnreachable as error:
        await use.reach.lost(reached)
        if not error.message.startswith("the agent at"):
            raise await _explained(use, reached.id, error) from error
    reached = await use.reach.agent(project_id, ref, wake=not asked.no_resume)
    return await run()


async def _explained(use: Services, sandbox_id: str, error: GuestUnreachable) -> GuestUnreachable:
    """It may have run: the caller decides whether to run it again."""
    sandbox = await use.sandboxes.by_id(sandbox_id)
    if sandbox is None or sandbox.status.phase is Phase.RUNNING:
        return error
    return GuestUnreachable(
        f"{error.message}: the sandbox is {sandbox.status.phase}",
        hint="what the command did is kept, and it goes on after a resume; one that is started (start_process, "
        "sandkeep exec) can be followed over a pause",
    )
