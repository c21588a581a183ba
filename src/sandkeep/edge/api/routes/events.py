"""Events: pages, and streams of one JSON a line."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response, StreamingResponse

from sandkeep.edge.api import shapes
from sandkeep.edge.api.services import Caller, Services, Using
from sandkeep.wire.events import EventView
from sandkeep.wire.shape import Page

router = APIRouter(tags=["events"])
After = Annotated[int, Query(ge=0, le=(1 << 63) - 1)]
Limit = Annotated[int, Query(ge=1, le=1000)]
_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-ndjson": {}}}}


@router.get("/v1/events", response_model=Page[EventView], responses=_STREAM)
async def list_events(who: Caller, use: Using, after: After = 0, limit: Limit = 200, follow: bool = False) -> Response:
    """`follow`: a stream of application/x-ndjson; blank lines keep it alive."""
    return await _answer(use, who.project_id, None, after, limit, follow)


@router.get("/v1/sandboxes/{ref}/events", response_model=Page[EventView], responses=_STREAM)
async def list_sandbox_events(
    ref: str, who: Caller, use: Using, after: After = 0, limit: Limit = 200, follow: bool = False
) -> Response:
    subject = (await use.sandboxes.get(who.project_id, ref)).id
    return await _answer(use, who.project_id, subject, after, limit, follow)


async def _answer(
    use: Services, project_id: str, subject: str | None, after: int, limit: int, follow: bool
) -> Response:
    await use.events.check_kept(after)
    if follow:
        return StreamingResponse(_lines(use, project_id, subject, after), media_type="application/x-ndjson")
    found = await use.events.page(project_id, after=after, limit=limit, subject=subject)
    page = Page[EventView](
        items=[shapes.event(item) for item in found],
        next_cursor=str(found[-1].seq) if len(found) == limit else None,
    )
    return Response(page.model_dump_json(), media_type="application/json")


async def _lines(use: Services, project_id: str, subject: str | None, after: int) -> AsyncIterator[bytes]:
    async for event in use.events.follow(project_id, after=after, subject=subject):
        yield shapes.event(event).model_dump_json().encode() + b"\n" if event else b"\n"
