"""HTTP/1.1 to an agent over a dialled byte stream: one request at a time on a connection, bodies streamed both ways.

The parser is httptools (llhttp). Everything that comes back is a stranger's: heads are limited, nothing is followed.
"""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
import httptools
from anyio.abc import ByteStream

from sandkeep.domain.errors import GuestError, GuestUnreachable
from sandkeep.lib.together import together

_MAX_HEAD = 64 << 10
_CHUNK = 256 << 10
_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)

Headers = list[tuple[bytes, bytes]]


class _Answer:
    """Collects what the parser says about one response."""

    def __init__(self) -> None:
        self.headers: Headers = []
        self.chunks: deque[bytes] = deque()
        self.head_done = False
        self.done = False
        self.head_size = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.head_size += len(name) + len(value)
        if self.head_size > _MAX_HEAD:
            raise GuestError("the agent's answer has too large a head")
        if self.head_done:
            return  # trailers: the two zero blocks of a tar say the same
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.head_done = True

    def on_body(self, data: bytes) -> None:
        self.chunks.append(data)

    def on_message_complete(self) -> None:
        self.done = True


class Connection:
    """One connection to an agent. Not for concurrent requests. `reusable` after the body was read to its end."""

    def __init__(self, stream: ByteStream, host: str) -> None:
        self._stream = stream
        self._host = host.encode()
        self.reusable = True
        self.served = 0
        self._cut = False

    async def close(self) -> None:
        self.reusable = False
        with anyio.CancelScope(shield=True), suppress(*_BROKEN):
            await anyio.aclose_forcefully(self._stream)

    async def exchange(
        self, method: str, target: str, headers: Headers, body: AsyncIterator[bytes] | bytes | None
    ) -> "Response":
        """One request, and the head of its answer. That may come before a streamed body has been sent (the disk is full):
        the rest is then not sent. Raises GuestUnreachable when the connection is gone, GuestError."""
        if body is None or isinstance(body, bytes):
            await self._send(method, target, headers, body)
            return await self._receive(method)
        async with together() as tasks:
            tasks.start_soon(self._send_until_answered, method, target, headers, body)
            response = await self._receive(method)
            tasks.cancel_scope.cancel()
        return response

    async def _send_until_answered(
        self, method: str, target: str, headers: Headers, body: AsyncIterator[bytes]
    ) -> None:
        self._cut = True
        try:
            await self._send(method, target, headers, body)
        except GuestUnreachable as error:
            if not error.details.get("sending"):
                raise
            return  # whoever stops listening has said why, or will be missed by who reads
        self._cut = False

    async def _send(
        self, method: str, target: str, headers: Headers, body: AsyncIterator[bytes] | bytes | None
    ) -> None:
        self.reusable = False
        head = [f"{method} {target} HTTP/1.1\r\nhost: ".encode(), self._host, b"\r\n"]
        sized = any(name.lower() == b"content-length" for name, _ in headers)
        for name, value in headers:
            head += (name, b": ", value, b"\r\n")
        try:
            if body is None or isinstance(body, bytes):
                payload = body or b""
                if not sized and (payload or method not in ("GET", "HEAD", "DELETE")):
                    head.append(b"content-length: %d\r\n" % len(payload))
                await self._stream.send(b"".join(head) + b"\r\n" + payload)
                return
            if not sized:
                head.append(b"transfer-encoding: chunked\r\n")
            await self._stream.send(b"".join(head) + b"\r\n")
            async for chunk in body:
                if chunk:
                    await self._stream.send(chunk if sized else b"%x\r\n%b\r\n" % (len(chunk), chunk))
            if not sized:
                await self._stream.send(b"0\r\n\r\n")
        except _BROKEN as error:
            raise GuestUnreachable("the connection to the agent broke while sending", sending=True) from error

    async def _receive(self, method: str) -> "Response":
        answer = _Answer()
        parser = httptools.HttpResponseParser(answer)
        while not answer.head_done:
            if not await self._feed(parser, answer):
                raise GuestUnreachable("the agent closed the connection without an answer", began=answer.head_size > 0)
        if parser.get_status_code() < 200:
            raise GuestError("the agent sent an interim answer")
        return Response(self, parser, answer, bodiless=method == "HEAD")

    async def _feed(self, parser: httptools.HttpResponseParser, answer: _Answer) -> bool:
        try:
            data = await self._stream.receive(_CHUNK)
        except anyio.EndOfStream:
            return False
        except _BROKEN as error:
            raise GuestUnreachable("the connection to the agent broke") from error
        try:
            parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise GuestError("the agent's answer is not acceptable") from error
        except httptools.HttpParserError as error:
            raise GuestError(f"the agent's answer is not HTTP: {error}") from error
        return True


class Response:
    """An answer whose body is still coming."""

    def __init__(
        self, connection: Connection, parser: httptools.HttpResponseParser, answer: _Answer, *, bodiless: bool
    ) -> None:
        self._connection = connection
        self._parser = parser
        self._answer = answer
        self._bodiless = bodiless
        self.status: int = parser.get_status_code()
        self.headers = answer.headers

    async def body(self) -> AsyncIterator[bytes]:
        """Chunks as they come. Raises GuestUnreachable when the body was cut."""
        answer = self._answer
        while not self._bodiless:
            while answer.chunks:
                yield answer.chunks.popleft()
            if answer.done:
                break
            if not await self._connection._feed(self._parser, answer):
                if self._length_known():
                    raise GuestUnreachable("the agent's answer was cut")
                break
        self._connection.served += 1
        self._connection.reusable = answer.done and self._parser.should_keep_alive() and not self._connection._cut

    def _length_known(self) -> bool:
        return any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises GuestError above `limit` bytes."""
        parts, size = [], 0
        async for chunk in self.body():
            size += len(chunk)
            if size > limit:
                raise GuestError(f"the agent's answer is above {limit} bytes")
            parts.append(chunk)
        return b"".join(parts)
