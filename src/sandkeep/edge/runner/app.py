"""Serves a Runner: POST /call/<method> with its arguments as JSON, POST /stream/<method> for those that give bytes (as blocks,
lib/blocks), POST /upload/<method> for those that take bytes (its arguments are the first block), GET /watch as a stream of JSON
lines.

Who may connect is decided by the socket's owner and mode; every call is still checked against the contract's types.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sandkeep.contracts import protocol
from sandkeep.contracts.protocol import Spoken
from sandkeep.contracts.runner import OLDEST_PROTOCOL, PROTOCOL_VERSION, Runner
from sandkeep.domain.errors import InvalidArgument, SandkeepError, Unavailable
from sandkeep.domain.node import Fact
from sandkeep.lib import blocks
from sandkeep.lib.remote import CodecError, adapter, method, stream, upload
from sandkeep.telemetry.log import log

_BEAT = 10.0


def runner_app(
    runner: Runner, version: str = "", oldest: int = OLDEST_PROTOCOL, newest: int = PROTOCOL_VERSION
) -> Starlette:
    """`version` and the rest: what this runner is and speaks. A server that speaks nothing of it is refused, with words here
    and there."""
    spoken, refused = Spoken(oldest, newest, version), ""

    async def call(request: Request) -> Response:
        answer = await (taken if request.url.path.startswith("/upload/") else answered)(request)
        answer.headers[protocol.HEADER] = spoken.header()
        return answer

    def refusal(request: Request) -> SandkeepError | None:
        nonlocal refused
        server = protocol.parse(request.headers.get(protocol.HEADER))
        try:
            protocol.check(server, spoken)
        except SandkeepError as error:
            if error.message != refused:  # it asks again and again
                refused = error.message
                log("server.refused", "error", error=error.message)
            return error
        return None

    async def answered(request: Request) -> Response:
        error = refusal(request)
        if error is not None:
            return _failure(error)
        name = request.path_params["name"]
        try:
            codec = method(Runner, name)
            arguments = codec.decode_arguments(await request.json())
        except (CodecError, ValueError) as wrong:
            return JSONResponse({"error": {"code": "invalid_argument", "message": str(wrong)}})
        try:
            result = await getattr(runner, name)(**arguments)
        except SandkeepError as failed:
            return _failure(failed)
        return JSONResponse({"result": codec.encode_result(result)})

    async def taken(request: Request) -> Response:
        error = refusal(request)
        if error is not None:
            return _failure(error)
        name, content = request.path_params["name"], _blocks_of(request)
        try:
            codec = upload(Runner, name)
            arguments = codec.decode_arguments(json.loads(await anext(content, b"")))
        except (CodecError, ValueError, ClientDisconnect) as wrong:
            return JSONResponse({"error": {"code": "invalid_argument", "message": str(wrong)}})
        try:
            result = await getattr(runner, name)(**arguments, content=content)
        except SandkeepError as failed:
            answer = _failure(failed)
            answer.headers["connection"] = "close"  # the rest is not read: who still sends it looks for the answer then
            return answer
        return JSONResponse({"result": codec.encode_result(result)})

    routes = [
        Route("/call/{name}", call, methods=["POST"]),
        Route("/upload/{name}", call, methods=["POST"]),
        Route("/stream/{name}", _Stream(runner, refusal), methods=["POST"]),
        Route("/watch", _Watch(runner)),
    ]
    return Starlette(routes=routes)


async def _blocks_of(request: Request) -> AsyncIterator[bytes]:
    """Raises Unavailable when the other side is gone before the end."""
    found = blocks.Blocks()
    try:
        async for data in request.stream():
            for content in found.feed(data):
                yield content
            if found.ended:
                return
    except (ClientDisconnect, blocks.BlocksError) as error:
        raise Unavailable("the server stopped sending") from error
    raise Unavailable("the server stopped sending")


def _failure(error: SandkeepError) -> Response:
    return JSONResponse(_told(error))


def _told(error: SandkeepError) -> dict[str, Any]:
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "retry_after": error.retry_after,
            "details": error.details,
        }
    }


class _Stream:
    """An ASGI endpoint: the bytes of a method that gives them, as blocks. What they are read from is let go of at once when
    the other side is gone."""

    def __init__(self, runner: Runner, refusal: Callable[[Request], SandkeepError | None]) -> None:
        self._runner = runner
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        refused = self._refusal(request)
        if refused is not None:
            await _failure(refused)(scope, receive, send)
            return
        name = request.path_params["name"]
        try:
            arguments = stream(Runner, name).decode_arguments(await request.json())
        except (CodecError, ValueError) as error:
            await _failure(InvalidArgument(str(error)))(scope, receive, send)
            return
        headers = [(b"content-type", b"application/octet-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_until_gone, receive, tasks.cancel_scope)
            last = blocks.END
            try:
                async with aclosing(getattr(self._runner, name)(**arguments)) as chunks:
                    async for chunk in chunks:
                        await send({"type": "http.response.body", "body": blocks.block(chunk), "more_body": True})
            except SandkeepError as error:
                last = blocks.error(json.dumps(_told(error)).encode())
            await send({"type": "http.response.body", "body": last, "more_body": False})
            tasks.cancel_scope.cancel()


class _Watch:
    """An ASGI endpoint: facts as JSON lines, and an empty line now and then, so that either side notices when the other
    is gone. Ends when the runner's feed does."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        after = int(Request(scope).query_params.get("after", "0"))
        headers = [(b"content-type", b"application/x-ndjson")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"\n", "more_body": True})
        sender, receiver = anyio.create_memory_object_stream[Fact](64)
        with receiver:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read, after, sender)
                tasks.start_soon(_until_gone, receive, tasks.cancel_scope)
                with suppress(anyio.EndOfStream):
                    while True:
                        line = b"\n"
                        with anyio.move_on_after(_BEAT):
                            fact = await receiver.receive()
                            line = json.dumps(adapter(Fact).dump_python(fact, mode="json")).encode() + b"\n"
                        await send({"type": "http.response.body", "body": line, "more_body": True})
                tasks.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _read(self, after: int, sender: MemoryObjectSendStream[Fact]) -> None:
        with sender:
            async for fact in self._runner.watch(after):
                await sender.send(fact)


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
