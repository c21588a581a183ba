"""Answers the guests: rate and work are bounded per sandbox and in all, and no input stops it."""

import asyncio
import contextlib
import socket
import struct
import time
from dataclasses import dataclass
from typing import cast

from sandkeep.drivers.network.resolver import message
from sandkeep.drivers.network.resolver.upstream import Upstream
from sandkeep.lib.buckets import Buckets

_TCP_CONNECTIONS, _TCP_PER_GUEST, _TCP_IDLE = 256, 8, 10.0
_QUERY_LIMIT = 4096
_DATAGRAMS_AT_ONCE = 64


@dataclass(frozen=True)
class Limits:
    """rate: queries per second and guest, after a burst; pending: questions in flight, in all and of one guest;
    guests: how many token buckets are remembered."""

    rate: float = 100.0
    burst: float = 200.0
    pending: int = 512
    pending_per_guest: int = 64
    guests: int = 65536


class Server:
    """`clients`: (network, mask) as integers; whoever else asks gets no answer."""

    def __init__(self, upstream: Upstream, clients: tuple[int, int], limits: Limits | None = None) -> None:
        self._upstream = upstream
        self._clients = clients
        self._limits = limits or Limits()
        self._buckets = Buckets(self._limits.rate, self._limits.burst, self._limits.guests)
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending: dict[str, int] = {}
        self._open: dict[str, int] = {}

    def is_client(self, address: str) -> bool:
        network, mask = self._clients
        return int.from_bytes(socket.inet_aton(address), "big") & mask == network

    async def answer(self, guest: str, data: bytes, *, by_tcp: bool = False) -> bytes | None:
        """None: say nothing."""
        query = message.parse_query(data)
        if query is None:
            return None
        if query.error:
            return message.error_answer(query, query.error)
        limits = self._limits
        mine = self._pending.get(guest, 0)
        in_flight = sum(self._pending.values()) if mine < limits.pending_per_guest else limits.pending
        if self._buckets.take(guest, time.monotonic()) or in_flight >= limits.pending:
            return message.error_answer(query, message.REFUSED)
        self._pending[guest] = mine + 1
        try:
            answer = await self._upstream.ask(query, data, by_tcp=by_tcp)
        finally:
            self._pending[guest] -= 1
            if not self._pending[guest]:
                del self._pending[guest]
        return answer or message.error_answer(query, message.SERVFAIL)

    def serve_udp(self, sock: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(sock, self._receive, sock)

    def _receive(self, sock: socket.socket) -> None:
        for _ in range(_DATAGRAMS_AT_ONCE):
            try:
                data, peer = sock.recvfrom(_QUERY_LIMIT + 1)
            except OSError:  # nothing more, or an ICMP error about a former answer
                return
            if len(data) > _QUERY_LIMIT or not self.is_client(peer[0]) or len(self._tasks) >= 2 * self._limits.pending:
                continue
            task = asyncio.get_running_loop().create_task(self._reply(sock, data, peer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _reply(self, sock: socket.socket, data: bytes, peer: tuple[str, int]) -> None:
        answer = await self.answer(peer[0], data)
        if answer is not None:
            with contextlib.suppress(OSError):  # a full queue, or the guest is gone: it asks again or not
                sock.sendto(answer, peer)

    async def serve_tcp(self, sock: socket.socket) -> None:
        await asyncio.start_server(self._connection, sock=sock, limit=_QUERY_LIMIT + 2)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        guest = cast(tuple[str, int], writer.get_extra_info("peername") or ("0.0.0.0", 0))[0]
        opened = self._open.get(guest, 0)
        if not self.is_client(guest) or opened >= _TCP_PER_GUEST or sum(self._open.values()) >= _TCP_CONNECTIONS:
            writer.transport.abort()
            return
        self._open[guest] = opened + 1
        try:
            await self._converse(guest, reader, writer)
        except (OSError, EOFError):  # gone, idle for too long, or cut off in a message
            pass
        finally:
            self._open[guest] -= 1
            if not self._open[guest]:
                del self._open[guest]
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _converse(self, guest: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(_TCP_IDLE):
                size = struct.unpack(">H", await reader.readexactly(2))[0]
                if size > _QUERY_LIMIT:
                    return
                data = await reader.readexactly(size)
            answer = await self.answer(guest, data, by_tcp=True)
            if answer is None:
                return
            writer.write(struct.pack(">H", len(answer)) + answer)
            async with asyncio.timeout(_TCP_IDLE):
                await writer.drain()
