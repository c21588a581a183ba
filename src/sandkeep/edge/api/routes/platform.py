"""The platform itself: runtimes, version, health, metrics."""

import anyio
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from sandkeep.domain.errors import SandkeepError, StorageFailed, Unavailable
from sandkeep.edge.api import shapes
from sandkeep.edge.api.services import Caller, Using
from sandkeep.telemetry import metrics
from sandkeep.wire.platform import API_VERSION, OLDEST_CLIENT, RuntimeView, VersionView
from sandkeep.wire.shape import Page

router = APIRouter(tags=["platform"])
_PATIENCE = 3.0


@router.get("/v1/runtimes")
async def list_runtimes(who: Caller, use: Using) -> Page[RuntimeView]:
    """The capability matrix, from the drivers' own records."""
    node = use.reconciler.node or await use.runner.handshake()
    return Page(items=[shapes.runtime(found) for found in node.runtimes])


@router.get("/v1/version")
async def show_version(who: Caller, use: Using) -> VersionView:
    node = use.reconciler.node
    return VersionView(
        version=use.version, api=API_VERSION, oldest_client=OLDEST_CLIENT, runner=node.version if node else None
    )


@router.get("/healthz", include_in_schema=False)
async def healthz() -> Response:
    return JSONResponse({"status": "ok"})


@router.get("/readyz", include_in_schema=False)
async def readyz(use: Using) -> Response:
    """Ready when the database and the node answer, and both can write down what they do; `apart` tells when they are not of
    one installation."""
    try:
        await use.events.check()
        if use.reconciler.node is None:
            raise Unavailable(use.reconciler.apart)
        with anyio.move_on_after(_PATIENCE) as waiting:
            trouble = await use.runner.storage()
        if waiting.cancelled_caught:
            raise Unavailable("the node's runner does not answer")
        if trouble:
            raise StorageFailed(f"the node: {trouble}")
    except SandkeepError as error:
        return JSONResponse({"status": "not ready", "reason": error.message}, status_code=503)
    standing = use.nodes.standing
    return JSONResponse({"status": "ready"} if standing.paired else {"status": "ready", "apart": standing.reason})


@router.get("/metrics", include_in_schema=False)
async def show_metrics(who: Caller) -> Response:
    return Response(metrics.render(), media_type=metrics.CONTENT_TYPE)
