"""Fulfils contracts.runner over the node's unix socket."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import anyio
import httpx2

from sandkeep.contracts import protocol
from sandkeep.contracts.protocol import Spoken
from sandkeep.contracts.runner import OLDEST_PROTOCOL, PROTOCOL_VERSION, Runner
from sandkeep.domain.browse import Point
from sandkeep.domain.errors import Internal, SandkeepError, Unavailable, every_error
from sandkeep.domain.node import Fact, Observed, OperationRef, SandboxOnNode
from sandkeep.domain.portable import Carried
from sandkeep.domain.sandbox import DEADLINES, Phase
from sandkeep.lib import blocks
from sandkeep.lib.blocks import Blocks
from sandkeep.lib.remote import CodecError, Method, adapter, method, stream, upload

_CALL_DEADLINE = 600.0
_BEAT_DEADLINE = 30.0
_CHUNK_DEADLINE = 60.0
_UPLOAD_DEADLINE = 3600.0
"""For the answer, once all was sent."""
_AS_LONG_AS = {
    "start": Phase.STARTING,
    "pause": Phase.PAUSING,
    "resume": Phase.RESUMING,
    "stop": Phase.STOPPING,
    "delete": Phase.DELETING,
    "archive": Phase.ARCHIVING,
    "archive_snapshot": Phase.ARCHIVING,
    "wake": Phase.WAKING,
    "wake_snapshot": Phase.WAKING,
    "rehearse": Phase.WAKING,
}
_GRACE = 30.0
"""Beyond the deadline of these phases: the node gives up before, unless it is frozen."""


class RemoteRunner:
    """Every method of the contract is a call; see `remote_runner`."""

    def __init__(self, socket: str, spoken: Spoken) -> None:
        self._spoken = spoken
        self._http = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=socket, limits=httpx2.Limits(max_connections=None)),
            base_url="http://runner",
            trust_env=False,
            headers={protocol.HEADER: spoken.header()},
        )

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            codec = method(Runner, name)
        except CodecError as error:
            raise AttributeError(name) from error

        phase = _AS_LONG_AS.get(name)
        timeout = httpx2.Timeout(DEADLINES[phase] + _GRACE if phase else _CALL_DEADLINE, connect=2.0)

        async def call(*positional: Any, **named: Any) -> Any:
            asked = codec.encode_arguments(positional, named)
            return await self._answered(codec, f"/call/{name}", json=asked, timeout=timeout)

        setattr(self, name, call)
        return call

    async def _answered(self, codec: Method, path: str, **request: Any) -> Any:
        try:
            answer = await self._http.post(path, **request)
            data = answer.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise Unavailable(
                f"the node's runner does not answer ({type(error).__name__})",
                hint="is it running? sandkeep up, or see the daemon's log",
                retry_after=2,
            ) from error
        protocol.check(self._spoken, protocol.parse(answer.headers.get(protocol.HEADER)))
        if data.get("error") is None and "result" in data:
            return codec.decode_result(data["result"])
        raise _failure(data)

    async def watch(self, after_seq: int) -> AsyncIterator[Fact]:
        timeout = httpx2.Timeout(_BEAT_DEADLINE, connect=2.0)
        try:
            async with self._http.stream("GET", "/watch", params={"after": after_seq}, timeout=timeout) as answer:
                async for line in answer.aiter_lines():
                    if line.strip():
                        yield adapter(Fact).validate_python(json.loads(line))
        except (httpx2.HTTPError, ValueError) as error:
            raise Unavailable("the node's feed ended", retry_after=1) from error

    async def read_file(self, point: Point, path: str) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._stream("read_file", point, path)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def read_tree(
        self, point: Point, path: str, name: str, follow: bool, exclude: tuple[str, ...]
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._stream("read_tree", point, path, name, follow, exclude)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def export_sandbox(self, sandbox_id: str, key: str) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._stream("export_sandbox", sandbox_id, key)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def look_portable(self, key: str, disk_only: bool, content: AsyncIterator[bytes]) -> Carried:
        return cast(Carried, await self._upload("look_portable", content, key, disk_only))

    async def import_sandbox(
        self,
        operation: OperationRef,
        sandbox: SandboxOnNode,
        key: str,
        disk_only: bool,
        content: AsyncIterator[bytes],
    ) -> Observed:
        return cast(Observed, await self._upload("import_sandbox", content, operation, sandbox, key, disk_only))

    async def _upload(self, name: str, content: AsyncIterator[bytes], *arguments: Any) -> Any:
        """What reading the content raises is raised here, and the node then knows that it broke off."""
        codec = upload(Runner, name)

        async def body() -> AsyncIterator[bytes]:
            yield blocks.block(json.dumps(codec.encode_arguments(arguments, {})).encode())
            async for chunk in content:
                for at in range(0, len(chunk), blocks.LONGEST):
                    yield blocks.block(chunk[at : at + blocks.LONGEST])
            yield blocks.END

        timeout = httpx2.Timeout(_CALL_DEADLINE, connect=2.0, read=_UPLOAD_DEADLINE)
        return await self._answered(codec, f"/upload/{name}", content=body(), timeout=timeout)

    async def _stream(self, name: str, *arguments: Any) -> AsyncGenerator[bytes, None]:
        timeout = httpx2.Timeout(_CHUNK_DEADLINE, connect=2.0)
        asked, found = stream(Runner, name).encode_arguments(arguments, {}), Blocks()
        request = self._http.build_request("POST", f"/stream/{name}", json=asked, timeout=timeout)
        try:
            answer = await self._http.send(request, stream=True)
            try:
                if answer.headers.get("content-type", "").startswith("application/json"):
                    raise _failure(json.loads(await answer.aread()))
                async for data in answer.aiter_raw():
                    for chunk in found.feed(data):
                        yield chunk
            finally:
                with anyio.CancelScope(shield=True):  # else a caller that was cancelled would leave it open
                    await answer.aclose()
        except (httpx2.HTTPError, ValueError) as error:
            raise Unavailable("the node's runner stopped sending", retry_after=2) from error
        if found.error is not None:
            raise _failure(json.loads(found.error))
        if not found.ended:
            raise Unavailable("the node's runner stopped sending", retry_after=2)

    async def close(self) -> None:
        await self._http.aclose()


def _failure(data: Any) -> SandkeepError:
    """What the node raised."""
    failure = data.get("error")
    if not failure:
        return Internal("the node's answer is not one")
    kind = every_error().get(failure["code"], Internal)
    return kind(
        failure["message"],
        hint=failure.get("hint"),
        retry_after=failure.get("retry_after"),
        **(failure.get("details") or {}),
    )


@asynccontextmanager
async def remote_runner(
    socket: str, version: str = "", oldest: int = OLDEST_PROTOCOL, newest: int = PROTOCOL_VERSION
) -> AsyncIterator[Runner]:
    """`socket`: path of the node's unix socket; the rest: what this server is and speaks. Its connections are closed at the
    end of the block."""
    remote = RemoteRunner(socket, Spoken(oldest, newest, version))
    try:
        yield cast(Runner, remote)
    finally:
        with anyio.CancelScope(shield=True):
            await remote.close()
