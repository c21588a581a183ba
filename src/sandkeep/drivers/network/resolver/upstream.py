"""Asks the host's own name servers, those of its resolv.conf(5). One fresh socket, port and identifier per question."""

import asyncio
import os
import socket
import struct
import time
from collections.abc import Awaitable
from dataclasses import dataclass

from sandkeep.drivers.network.resolver import message

_PORT = 53
_MAX_SERVERS = 3
_MAX_TIMEOUT, _MAX_ATTEMPTS = 5.0, 3
_STRAY_ANSWERS = 16


@dataclass(frozen=True)
class Servers:
    """addresses: numeric, IPv6 with its scope; timeout: seconds for one try of one server; attempts: rounds."""

    addresses: tuple[str, ...] = ("127.0.0.1",)
    timeout: float = 2.0
    attempts: int = 2


def parse_resolv_conf(text: str, own: str = "") -> Servers:
    """`own` is the resolver's own address, which it never asks. Without a nameserver line the default of
    resolv.conf(5) holds: this host."""
    found: list[str] = []
    timeout, attempts = Servers.timeout, Servers.attempts
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and words[1] != own:
            found.append(words[1])
        elif words and words[0] == "options":
            for option in words[1:]:
                name, _, value = option.partition(":")
                if value.isascii() and value.isdigit() and int(value) > 0:
                    if name == "timeout":
                        timeout = min(float(value), _MAX_TIMEOUT)
                    elif name == "attempts":
                        attempts = min(int(value), _MAX_ATTEMPTS)
    return Servers(tuple(found[:_MAX_SERVERS]) or Servers.addresses, timeout, attempts)


class Upstream:
    """`deadline`: seconds for one question, all servers and rounds together."""

    def __init__(self, resolv_conf: str, own: str = "", deadline: float = 6.0) -> None:
        self._path = resolv_conf
        self._own = own
        self._deadline = deadline
        self._servers = Servers()
        self._seen: object = None
        self._checked = -1e9

    def servers(self) -> Servers:
        """Read again when the file changed; looked at most once per second."""
        now = time.monotonic()
        if now - self._checked >= 1.0:
            self._checked = now
            try:
                info = os.stat(self._path)
                state = (info.st_mtime_ns, info.st_ino, info.st_size)
                if state != self._seen:
                    with open(self._path, encoding="utf-8", errors="replace") as file:
                        self._servers = parse_resolv_conf(file.read(65536), self._own)
                    self._seen = state
            except OSError:
                pass  # being replaced: the old ones stay
        return self._servers

    async def ask(self, query: message.Query, data: bytes, *, by_tcp: bool) -> bytes | None:
        """The answer under the asker's own identifier; None when no server gave one. For an asker by TCP a server
        is asked by TCP, and by UDP when it does not listen there."""
        fallback: bytes | None = None
        try:
            async with asyncio.timeout(self._deadline):
                servers = self.servers()
                for _ in range(servers.attempts):
                    for address in servers.addresses:
                        answer = await self._ask_one(address, query, data, servers.timeout, by_tcp)
                        if answer is None:
                            continue
                        answer = message.with_identifier(answer, query.identifier)
                        if not message.failed(answer):
                            return answer
                        fallback = answer
                    if fallback is not None:
                        break
        except TimeoutError:
            pass
        return fallback

    async def _ask_one(
        self, address: str, query: message.Query, data: bytes, timeout: float, by_tcp: bool
    ) -> bytes | None:
        identifier = int.from_bytes(os.urandom(2), "big")
        packet = message.with_identifier(data, identifier)
        answer = None
        if by_tcp:
            answer = await _quietly(_by_tcp(address, packet), timeout)
        if answer is None:
            answer = await _quietly(_by_udp(address, packet, identifier, query.question), timeout)
        if answer is None or not message.answers(answer, identifier, query.question):
            return None
        return answer


async def _quietly(call: Awaitable[bytes | None], timeout: float) -> bytes | None:
    try:
        async with asyncio.timeout(timeout):
            return await call
    except (OSError, EOFError, ValueError):  # refused, unreachable, timed out, cut off, or a bad address in the file
        return None


def _target(address: str) -> tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]:
    family, _, _, _, target = socket.getaddrinfo(address, _PORT, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0]
    return family, target  # type: ignore[return-value]


async def _by_udp(address: str, packet: bytes, identifier: int, question: bytes) -> bytes | None:
    """A connected socket: the kernel lets in only what comes from the server, and reports a refusal at once."""
    family, target = _target(address)
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
        sock.connect(target)
        await loop.sock_sendall(sock, packet)
        for _ in range(_STRAY_ANSWERS):
            answer = await loop.sock_recv(sock, 65535)
            if message.answers(answer, identifier, question):
                return answer
    return None


async def _by_tcp(address: str, packet: bytes) -> bytes | None:
    family, target = _target(address)
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
        await loop.sock_connect(sock, target)
        await loop.sock_sendall(sock, struct.pack(">H", len(packet)) + packet)
        size = struct.unpack(">H", await _exactly(loop, sock, 2))[0]
        return await _exactly(loop, sock, size)


async def _exactly(loop: asyncio.AbstractEventLoop, sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = await loop.sock_recv(sock, size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data
