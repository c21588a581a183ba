"""uvicorn's HTTP protocol with a limit on the head of a request: neither many headers nor an endless one fill memory."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT = 64 << 10
_ANSWER = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b"
)
_PROBLEM = (
    b'{"type":"urn:sandkeep:error:too_large","title":"Too large","status":431,"detail":"the head of the request is '
    b'above 65536 bytes","code":"too_large","hint":"send fewer or shorter headers"}'
)


class LimitedHttpProtocol(HttpToolsProtocol):
    """Counts the bytes that arrive until a head is complete."""

    _head_bytes = 0
    _in_head = True

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_LIMIT and not self.transport.is_closing():
            self.transport.write(_ANSWER % (len(_PROBLEM), _PROBLEM))
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        super().on_message_complete()
