"""A sandbox as one file, out and in: bare ASGI, as it comes. The key of the file is in a header, never in the address."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import anyio
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sandkeep.domain.errors import InvalidArgument, SandkeepError
from sandkeep.domain.portable import FILE_KEY_HEADER
from sandkeep.edge.api import shapes
from sandkeep.edge.api.services import Services
from sandkeep.edge.gate.passage import GUARDS
from sandkeep.edge.gate.problems import problem_response
from sandkeep.lib.together import together

_PATIENCE = 120.0
"""Seconds for a client to take, or to send, the next piece: a moment of a sandbox, or a half-made one, waits for it."""
_MOST_KEY, _MOST_NAME = 255, 255


class _Export:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HTTPConnection(scope)
        begun = False
        try:
            who = await self._services.identity.principal(request)
            key = request.headers.get(FILE_KEY_HEADER, "")
            chunks = self._services.portable.export(who.project_id, scope["path_params"]["ref"], key)
            async with together() as tasks:
                tasks.start_soon(_until_gone, receive, tasks.cancel_scope)
                async with aclosing(chunks):
                    async for chunk in chunks:
                        if not begun:
                            begun = True
                            headers = [(b"content-type", b"application/octet-stream"), *GUARDS]
                            await send({"type": "http.response.start", "status": 200, "headers": headers})
                        with anyio.fail_after(_PATIENCE):
                            await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                tasks.cancel_scope.cancel()
        except (SandkeepError, TimeoutError) as error:
            if begun or not isinstance(error, SandkeepError):
                raise ConnectionAbortedError("the stream broke after it had begun") from error
            await problem_response(error)(scope, receive, send)


class _Import:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HTTPConnection(scope)
        try:
            who = await self._services.identity.principal(request)
            asked = request.query_params
            name, disk_only = asked.get("name"), asked.get("disk_only", "false")
            if name is not None and len(name) > _MOST_NAME:
                raise InvalidArgument("the name is too long", field="name")
            if disk_only not in ("true", "false"):
                raise InvalidArgument("disk_only is true or false", field="disk_only")
            once = request.headers.get("Idempotency-Key")
            if once is not None and len(once) > _MOST_KEY:
                raise InvalidArgument("the Idempotency-Key is too long", field="idempotency-key")
            async with aclosing(_body(receive)) as content:
                found, made = await self._services.portable.bring(
                    who.project_id,
                    name,
                    request.headers.get(FILE_KEY_HEADER, ""),
                    content,
                    disk_only=disk_only == "true",
                    key=once,
                    caller=who.key_id,
                )
            answer: Response = JSONResponse(shapes.sandbox(found).model_dump(mode="json"), 201 if made else 200)
        except SandkeepError as error:
            answer = problem_response(error)
        # What was not read is not read any more: a client that still sends sees that, and reads the answer.
        answer.headers["connection"] = "close"
        await answer(scope, receive, send)


async def _body(receive: Receive) -> AsyncGenerator[bytes, None]:
    """Raises InvalidArgument when it does not come to its end."""
    while True:
        try:
            with anyio.fail_after(_PATIENCE):
                message = await receive()
        except TimeoutError as error:
            raise InvalidArgument(f"nothing of the file came for {_PATIENCE:g} s", hint="send it again") from error
        if message["type"] == "http.disconnect":
            raise InvalidArgument("the upload broke off", hint="send it again")
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def portable_routes(services: Services) -> list[Route]:
    return [
        Route("/v1/sandboxes/{ref}/export", _Export(services), methods=["POST"]),
        Route("/v1/import", _Import(services), methods=["POST"]),
    ]
