"""Serves a Runner: POST /call/<method> with its arguments as JSON, GET /watch as a stream of JSON lines.

Who may connect is decided by the socket's owner and mode; every call is still checked against the contract's types.
"""

import json
from collections.abc import AsyncIterator

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sandkeep.contracts.runner import Runner
from sandkeep.domain.errors import SandkeepError
from sandkeep.domain.node import Fact
from sandkeep.lib.remote import CodecError, adapter, method

_BEAT = 10.0


def runner_app(runner: Runner) -> Starlette:
    async def call(request: Request) -> Response:
        name = request.path_params["name"]
        try:
            codec = method(Runner, name)
            arguments = codec.decode_arguments(await request.json())
        except (CodecError, ValueError) as error:
            return JSONResponse({"error": {"code": "invalid_argument", "message": str(error)}})
        try:
            result = await getattr(runner, name)(**arguments)
        except SandkeepError as error:
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
        return JSONResponse({"result": codec.encode_result(result)})

    async def watch(request: Request) -> Response:
        after = int(request.query_params.get("after", "0"))
        return StreamingResponse(_lines(runner, after), media_type="application/x-ndjson")

    return Starlette(routes=[Route("/call/{name}", call, methods=["POST"]), Route("/watch", watch)])


async def _lines(runner: Runner, after: int) -> AsyncIterator[bytes]:
    """Facts, and an empty line now and then so that either side notices when the other is gone."""
    sender, receiver = anyio.create_memory_object_stream[Fact](64)

    async def read() -> None:
        async with sender:
            async for fact in runner.watch(after):
                await sender.send(fact)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        yield b"\n"
        while True:
            fact = None
            with anyio.move_on_after(_BEAT):
                fact = await receiver.receive()
            yield json.dumps(adapter(Fact).dump_python(fact, mode="json")).encode() + b"\n" if fact else b"\n"
