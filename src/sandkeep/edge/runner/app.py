"""Serves a Runner: POST /call/<method> with its arguments as JSON, GET /watch as a stream of JSON lines.

Who may connect is decided by the socket's owner and mode; every call is still checked against the contract's types.
"""

import json
from contextlib import suppress

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sandkeep.contracts import protocol
from sandkeep.contracts.protocol import Spoken
from sandkeep.contracts.runner import OLDEST_PROTOCOL, PROTOCOL_VERSION, Runner
from sandkeep.domain.errors import SandkeepError
from sandkeep.domain.node import Fact
from sandkeep.lib.remote import CodecError, adapter, method
from sandkeep.telemetry.log import log

_BEAT = 10.0


def runner_app(
    runner: Runner, version: str = "", oldest: int = OLDEST_PROTOCOL, newest: int = PROTOCOL_VERSION
) -> Starlette:
    """`version` and the rest: what this runner is and speaks. A server that speaks nothing of it is refused, with words here
    and there."""
    spoken, refused = Spoken(oldest, newest, version), ""

    async def call(request: Request) -> Response:
        answer = await answered(request)
        answer.headers[protocol.HEADER] = spoken.header()
        return answer

    async def answered(request: Request) -> Response:
        nonlocal refused
        server = protocol.parse(request.headers.get(protocol.HEADER))
        try:
            protocol.check(server, spoken)
        except SandkeepError as error:
            if error.message != refused:  # it asks again and again
                refused = error.message
                log("server.refused", "error", error=error.message)
            return _failure(error)
        name = request.path_params["name"]
        try:
            codec = method(Runner, name)
            arguments = codec.decode_arguments(await request.json())
        except (CodecError, ValueError) as error:
            return JSONResponse({"error": {"code": "invalid_argument", "message": str(error)}})
        try:
            result = await getattr(runner, name)(**arguments)
        except SandkeepError as error:
            return _failure(error)
        return JSONResponse({"result": codec.encode_result(result)})

    return Starlette(routes=[Route("/call/{name}", call, methods=["POST"]), Route("/watch", _Watch(runner))])


def _failure(error: SandkeepError) -> Response:
    return JSONResponse(
        {
            "error": {
                "code": error.code,
                "message": error.message,
                "hint": error.hint,
                "retry_after": error.retry_after,
                "details": error.details,
            }
        }
    )


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
