"""Templates: build, look, delete."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from sandkeep.domain.errors import NotFound, Unavailable
from sandkeep.domain.quantities import parse_size
from sandkeep.domain.sandbox import Limits, RuntimeKind
from sandkeep.domain.template import TemplatePhase
from sandkeep.edge.api import shapes
from sandkeep.edge.api.services import Caller, Services, Using
from sandkeep.wire.shape import Page
from sandkeep.wire.templates import TemplateBuild, TemplateView

router = APIRouter(prefix="/v1/templates", tags=["templates"])


@router.get("")
async def list_templates(who: Caller, use: Using) -> Page[TemplateView]:
    return Page(items=[shapes.template(found) for found in await use.templates.page(who.project_id)])


@router.post("", status_code=202)
async def build_template(asked: TemplateBuild, who: Caller, use: Using) -> TemplateView:
    """Begins a build; every step runs inside a sandbox. Follow it by /log."""
    found = await use.templates.build(
        who.project_id,
        asked.name,
        asked.parent,
        asked.steps,
        runtime=RuntimeKind(asked.runtime),
        limits=Limits(memory=parse_size(asked.memory, "memory"), disk=parse_size(asked.disk, "disk")),
        step_timeout=asked.step_timeout,
    )
    return shapes.template(found)


@router.get("/{ref}")
async def show_template(ref: str, who: Caller, use: Using) -> TemplateView:
    return shapes.template(await use.templates.get(who.project_id, ref))


@router.get("/{ref}/log", response_class=PlainTextResponse)
async def template_log(ref: str, who: Caller, use: Using, follow: bool = False) -> Response:
    """What the steps printed, as text."""
    found = await use.templates.get(who.project_id, ref)
    if not follow:
        return Response(found.log, media_type="text/plain")
    return StreamingResponse(_log(use, who.project_id, found.id), media_type="text/plain")


async def _log(use: Services, project_id: str, template_id: str) -> AsyncIterator[bytes]:
    sent = 0
    async for _ in use.templates.changes():
        try:
            found = await use.templates.get(project_id, template_id)
        except NotFound:
            return
        except Unavailable:
            continue  # the build goes on, and there will be news when the database is back
        if len(found.log) > sent:
            yield found.log[sent:].encode()
            sent = len(found.log)
        if found.phase is not TemplatePhase.BUILDING:
            return


@router.delete("/{ref}", status_code=204)
async def delete_template(ref: str, who: Caller, use: Using) -> Response:
    """409 in_use while sandboxes made from it are there. One that is being built: its build is cancelled."""
    await use.templates.delete(who.project_id, ref)
    return Response(status_code=204)
