"""The platform itself: runtimes, node, version, health, metrics."""

from dataclasses import asdict

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from sandkeep.domain.errors import SandkeepError, Unavailable
from sandkeep.edge.api import shapes
from sandkeep.edge.api.services import Caller, Using
from sandkeep.telemetry import metrics
from sandkeep.wire.platform import API_VERSION, OLDEST_CLIENT, CapacityView, NodeView, RuntimeView, VersionView
from sandkeep.wire.shape import Page

router = APIRouter(tags=["platform"])


@router.get("/v1/runtimes")
async def list_runtimes(who: Caller, use: Using) -> Page[RuntimeView]:
    """The capability matrix, from the drivers' own records."""
    node = use.reconciler.node or await use.runner.handshake()
    return Page(items=[shapes.runtime(found) for found in node.runtimes])


@router.get("/v1/node")
async def show_node(who: Caller, use: Using) -> NodeView:
    node = use.reconciler.node or await use.runner.handshake()
    return NodeView(
        node_id=node.node_id,
        version=node.version,
        disk_driver=node.disks.kind,
        disk_notes=list(node.disks.notes),
        capacity=CapacityView(**asdict(await use.runner.capacity())),
    )


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
    """Ready when the database and the node answer."""
    try:
        await use.events.page("", after=0, limit=1)
        if use.reconciler.node is None:
            raise Unavailable("the node's runner does not answer")
    except SandkeepError as error:
        return JSONResponse({"status": "not ready", "reason": error.message}, status_code=503)
    return JSONResponse({"status": "ready"})


@router.get("/metrics", include_in_schema=False)
async def show_metrics(who: Caller) -> Response:
    return Response(metrics.render(), media_type=metrics.CONTENT_TYPE)
