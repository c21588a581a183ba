"""Streams of the agent's protocol, through the server: one request out, messages back until the end or a break."""

from collections import deque
from collections.abc import AsyncIterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sandkeep.lib.connect import END_FLAG, STREAM_TYPE, Deframer, FrameError, frame
from sandkeep.sdk import errors
from sandkeep.sdk._async.transport import AsyncTransport, lost

if TYPE_CHECKING:
    import httpx2

# The agent is asked for a sign of life this often; three missing ones mean that the connection is dead.
_KEEPALIVE = 20
_SILENCE = 3.0 * _KEEPALIVE


class AsyncFrames:
    """The answer to one streaming call. Raises ConnectionLost when it breaks before its end."""

    def __init__(self, response: "httpx2.Response", url: str) -> None:
        self._response = response
        self._url = url
        self._chunks: AsyncIterator[bytes] = response.aiter_raw()
        self._deframer = Deframer()
        self._ready: deque[tuple[int, Any]] = deque()
        self._broken: type[Exception] = import_module("httpx2").TransportError

    @staticmethod
    async def open(
        transport: AsyncTransport, path: str, message: Any, query: dict[str, Any] | None = None
    ) -> "AsyncFrames":
        response = await transport.open(
            "POST",
            path,
            query=query,
            content=frame(message),
            headers={"Content-Type": STREAM_TYPE, "Keepalive-Ping-Interval": str(_KEEPALIVE)},
            timeout=_SILENCE,
        )
        return AsyncFrames(response, transport.address.url)

    async def receive(self) -> dict[str, Any] | None:
        """The next message, or None after the last one. Raises the error that ended the stream, if one did."""
        while not self._ready:
            try:
                chunk = await self._chunks.__anext__()
                self._ready.extend(self._deframer.feed(chunk))
            except StopAsyncIteration:
                raise lost(self._url, EOFError("the stream was cut")) from None
            except (self._broken, FrameError) as failure:
                raise lost(self._url, failure) from failure
        flags, message = self._ready.popleft()
        if not isinstance(message, dict):
            raise errors.GuestError("the agent sent a message that is not an object")
        if flags & END_FLAG:
            error = message.get("error")
            if isinstance(error, dict):
                raise errors.from_connect(error)
            return None
        return message

    async def aclose(self) -> None:
        await self._response.aclose()
