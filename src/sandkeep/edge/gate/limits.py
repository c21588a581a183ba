"""Limits on what a client may send: body sizes of JSON routes, counted as the bytes come."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandkeep.domain.errors import TooLarge
from sandkeep.edge.gate.problems import problem_response

JSON_LIMIT = 1 << 20
EXEC_LIMIT = 16 << 20
_BYTE_PATHS = ("/files", "/tree", "/v1/import")


class _BodyTooLargeError(Exception):
    pass


class BodyLimit:
    """Pure ASGI. Byte paths are not limited: they stream in bounded memory and meet the sandbox's own disk limit."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or path.endswith(_BYTE_PATHS) or "/agent/" in path:
            await self._app(scope, receive, send)
            return
        limit = EXEC_LIMIT if path.endswith("/exec") else JSON_LIMIT
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not declared.isdigit() or int(declared) > limit:
            await self._refuse(limit, scope, receive, send)
            return
        taken = 0
        answered = refusing = False

        async def counted() -> Message:
            nonlocal taken, refusing
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > limit:
                    refusing = True
                    raise _BodyTooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal answered
            if refusing and not answered:
                raise _BodyTooLargeError  # a framework that took ours for an error of parsing
            answered = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except _BodyTooLargeError:
            if not answered:
                await self._refuse(limit, scope, receive, send)

    async def _refuse(self, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
        error = TooLarge(f"the body is above {limit} bytes", hint="upload files through /files")
        await problem_response(error)(scope, receive, send)
