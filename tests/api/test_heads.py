"""The limit on request heads, over a real socket."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPResponse

import pytest
from starlette.responses import PlainTextResponse

from sandkeep.app.daemon import listener
from sandkeep.edge.gate import heads
from sandkeep.edge.gate.heads import HEAD_LIMIT, LimitedHttpProtocol


@pytest.fixture
def port() -> Iterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = listener(PlainTextResponse("ok"), http=LimitedHttpProtocol)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listening.getsockname()[1]
    server.should_exit = server.force_exit = True
    thread.join(10)


def answer(port: int, *parts: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return connection.recv(65536)


def test_an_ordinary_head_passes_and_so_does_a_large_body(port: int) -> None:
    assert b" 200 " in answer(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    body = b"x" * (4 * HEAD_LIMIT)
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    assert b" 200 " in answer(port, head, body)


def test_one_endless_header_is_refused(port: int) -> None:
    assert b" 431 " in answer(port, b"GET / HTTP/1.1\r\nx: ", *[b"y" * 16384] * 8)


def test_many_headers_are_refused(port: int) -> None:
    assert b" 431 " in answer(port, b"GET / HTTP/1.1\r\n", *[b"a-header: with a value\r\n" * 200] * 30)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "invalid_argument"),
        (b"GET / HTTP/9.9\r\n\r\n", 400, "invalid_argument"),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 400_000 + b"\r\n\r\n", 431, "too_large"),
    ],
)
def test_what_is_no_request(port: int, sent: bytes, status: int, code: str) -> None:
    with socket.create_connection(("127.0.0.1", port), 5) as raw:
        raw.sendall(sent)
        answer = HTTPResponse(raw)
        answer.begin()
        told = json.loads(answer.read())
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert (told["status"], told["code"]) == (status, code)
    assert told["hint"]


def test_who_sends_no_head_is_not_waited_for(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "HEAD_PATIENCE", 0.3)
    for begun in (b"", b"GET / HTTP/1.1\r\nhost:"):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(begun)
            assert _ended(connection)


def test_of_too_many_silent_ones_the_oldest_is_closed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "MOST_SILENT", 3)
    silent = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(4)]
    assert _ended(silent[0])
    silent[3].sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b" 200 " in silent[3].recv(65536)
    for connection in silent:
        connection.close()


def _ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
