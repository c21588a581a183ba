"""The REST door as one ASGI application."""

import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandkeep.domain.errors import Internal, InvalidArgument, NotFound, SandkeepError
from sandkeep.edge.api.routes import (
    archives,
    browse,
    events,
    execs,
    keys,
    node,
    platform,
    sandboxes,
    snapshots,
    templates,
    timeline,
)
from sandkeep.edge.api.routes.bytes import byte_routes
from sandkeep.edge.api.routes.terminal import terminal_routes
from sandkeep.edge.api.services import Services, services_of
from sandkeep.edge.gate.limits import BodyLimit
from sandkeep.edge.gate.problems import problem_response
from sandkeep.telemetry import metrics
from sandkeep.telemetry.log import log

_NO_JSON = "json_invalid"
_REFERENCE = "the page HTTP of Sandkeep's reference lists every route with its fields"


def api_app(services: Services | None, version: str) -> FastAPI:
    """`services` is None only for making the API document."""
    app = FastAPI(
        title="Sandkeep",
        version=version,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.services = services
    for module in (execs, sandboxes, snapshots, browse, timeline, archives, templates, events, keys, node, platform):
        app.include_router(module.router)
    if services is not None:
        app.router.routes[:0] = [*byte_routes(services), *terminal_routes(services)]
    app.add_exception_handler(SandkeepError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _crash)
    app.add_middleware(BodyLimit)
    app.add_middleware(Measured)
    return app


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, SandkeepError)
    return problem_response(error)


async def _invalid(request: Request, error: Exception) -> Response:
    """A body that is no JSON, and nothing else, is met before the key is: who has none learns just that."""
    assert isinstance(error, RequestValidationError)
    if any(item["type"] == _NO_JSON for item in error.errors()):
        try:
            await (await services_of(request)).identity.principal(request)
        except SandkeepError as refused:
            return problem_response(refused)
    found = [_wrong(item) for item in error.errors()[:10]]
    first = found[0] if found else {"field": "", "message": "the request is not valid"}
    field = f"{first['field']}: " if first["field"] else ""
    return problem_response(
        InvalidArgument(f"{field}{first['message']}", hint=_REFERENCE, field=first["field"], errors=found)
    )


def _wrong(item: Mapping[str, Any]) -> dict[str, str]:
    """Which field, and what is wrong with it. A body that is not JSON has no fields."""
    if item["type"] == _NO_JSON:
        return {"field": "", "message": f"the body is not JSON: {item.get('ctx', {}).get('error', item['msg'])}"}
    return {"field": ".".join(str(part) for part in item["loc"][1:]), "message": item["msg"]}


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return problem_response(NotFound(f"there is no {request.url.path[:100]}", hint=_REFERENCE))
    response = problem_response(InvalidArgument(str(error.detail), hint=_REFERENCE))
    response.status_code = error.status_code
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _crash(request: Request, error: Exception) -> Response:
    log("request.failed", "error", path=request.url.path[:100], error=repr(error))
    return problem_response(Internal("something failed in the server", hint="the server's log has the details"))


class Measured:
    """Counts requests and their times by route; pure ASGI, so that streams are not wrapped."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            metrics.REQUESTS.labels(route, scope["method"], str(status)).inc()
            metrics.REQUEST_SECONDS.labels(route, scope["method"]).observe(time.perf_counter() - begun)
