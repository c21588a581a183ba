"""A WebSocket over the client's own connection pool, for the terminal: frames by wsproto, no task in the background."""

import base64
import os
from collections import deque
from importlib import import_module
from typing import Any

from sandkeep.sdk import errors
from sandkeep.sdk._async.transport import AsyncTransport, Query, lost
from sandkeep.sdk.concurrency import AsyncLock

# Servers ping every 20 s; this much silence means that the connection is dead.
_SILENCE = 90.0
_READ = 1 << 16

Message = bytes | str


class Closed(Exception):
    """The peer closed the WebSocket; `code` as in RFC 6455."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"closed with {code}" + (f": {reason}" if reason else ""))
        self.code, self.reason = code, reason


class AsyncWebSocket:
    """Open one with `open`. One task may receive while another sends."""

    def __init__(self, response: Any, url: str) -> None:
        wsproto = import_module("wsproto")
        self._events: Any = import_module("wsproto.events")
        self._connection: Any = wsproto.Connection(wsproto.ConnectionType.CLIENT)
        self._response = response
        self._stream: Any = response.extensions["network_stream"]
        self._url = url
        self._ready: deque[Message | Closed] = deque()
        self._parts: list[Any] = []
        # A pong is sent while receiving, maybe in the middle of somebody's send.
        self._sending = AsyncLock()
        # What wsproto raises when it is asked to send after the close.
        self._protocol_error: type[Exception] = import_module("wsproto.utilities").ProtocolError
        core: Any = import_module("httpcore2")
        self._broken: tuple[type[Exception], ...] = (
            core.NetworkError, core.TimeoutException, core.ProtocolError, OSError,
        )  # fmt: skip

    @staticmethod
    async def open(transport: AsyncTransport, path: str, query: Query) -> "AsyncWebSocket":
        headers = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        }
        response = await transport.open("GET", path, query=query, headers=headers, again=True)
        if response.status_code != 101:
            await response.aclose()
            raise errors.Internal(f"{transport.address.url} did not open a WebSocket ({response.status_code})")
        return AsyncWebSocket(response, transport.address.url)

    async def receive(self) -> Message:
        """The next message. Raises Closed, or ConnectionLost."""
        while not self._ready:
            try:
                data = await self._stream.read(_READ, timeout=_SILENCE)
                if not data:
                    raise lost(self._url, EOFError("the stream was cut"))
                self._connection.receive_data(data)
                for event in self._connection.events():
                    await self._take(event)
            except (*self._broken, self._protocol_error) as failure:
                raise lost(self._url, failure) from failure
        message = self._ready.popleft()
        if isinstance(message, Closed):
            raise message
        return message

    async def _take(self, event: Any) -> None:
        events = self._events
        if isinstance(event, events.Message):
            self._parts.append(event.data)
            if event.message_finished:
                parts, self._parts = self._parts, []
                text = isinstance(event, events.TextMessage)
                self._ready.append("".join(parts) if text else b"".join(map(bytes, parts)))
        elif isinstance(event, events.Ping):
            await self._send(event.response())
        elif isinstance(event, events.CloseConnection):
            self._ready.append(Closed(int(event.code), event.reason or ""))

    async def _send(self, event: Any) -> None:
        async with self._sending:
            await self._stream.write(self._connection.send(event))

    async def send(self, message: Message) -> None:
        """Raises ConnectionLost."""
        kind = self._events.TextMessage if isinstance(message, str) else self._events.BytesMessage
        try:
            await self._send(kind(data=message))
        except (*self._broken, self._protocol_error) as failure:
            raise lost(self._url, failure) from failure

    async def aclose(self) -> None:
        try:
            await self._send(self._events.CloseConnection(code=1000))
        except (*self._broken, self._protocol_error):
            pass
        finally:
            await self._response.aclose()
