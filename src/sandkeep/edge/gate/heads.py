"""uvicorn's HTTP protocol with a limit on the head of a request: neither many headers nor an endless one fill memory. What
is no HTTP is refused as every other request is."""

import asyncio
import json
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sandkeep.domain.errors import InvalidArgument, SandkeepError, TooLarge
from sandkeep.edge.gate.problems import problem

HEAD_LIMIT = 64 << 10


HEAD_PATIENCE = 20.0
"""Seconds for the first head of a connection; between two requests uvicorn closes what is idle."""
MOST_SILENT = 2000
"""Connections that have sent no whole head yet: above that, the oldest is closed."""
_silent: "dict[LimitedHttpProtocol, asyncio.TimerHandle]" = {}


class LimitedHttpProtocol(HttpToolsProtocol):
    """Counts the bytes that arrive until a head is complete, and the time."""

    _head_bytes = 0
    _in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _silent[self] = self.loop.call_later(HEAD_PATIENCE, self._give_up)
        if len(_silent) > MOST_SILENT:
            next(iter(_silent))._give_up()

    def connection_lost(self, exc: Exception | None) -> None:
        self._was_heard()
        super().connection_lost(exc)

    def _was_heard(self) -> None:
        timer = _silent.pop(self, None)
        if timer is not None:
            timer.cancel()

    def _give_up(self) -> None:
        self._was_heard()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_LIMIT and not self.transport.is_closing():
            error = TooLarge(
                f"the head of the request is above {HEAD_LIMIT} bytes", hint="send fewer or shorter headers"
            )
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, error)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn."""
        self._refuse(HTTPStatus.BAD_REQUEST, InvalidArgument("this is not HTTP", hint="is it TLS, or another program?"))

    def _refuse(self, status: HTTPStatus, error: SandkeepError) -> None:
        body = json.dumps(problem(error) | {"status": status.value}).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/problem+json\r\n"
            f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def on_headers_complete(self) -> None:
        self._was_heard()
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        super().on_message_complete()
