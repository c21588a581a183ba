"""A network of the tests' own: a private namespace for the whole test process, and stand-ins for what is outside.

No packet leaves it. `Internet` plays public hosts, the metadata service, a machine of the operator's private network
and a lying name server, all in one namespace behind a plain veth.
"""

import contextlib
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from sandkeep.drivers.network import namespaces, rtnetlink
from sandkeep.drivers.network.rtnetlink import LOOPBACK, Netlink

UPLINK, ROUTER = "192.0.2.1", "192.0.2.2"
PUBLIC, OTHER = "198.51.100.1", "203.0.113.1"
METADATA, AZURE = "169.254.169.254", "168.63.129.16"
NEIGHBOUR = "192.168.77.1"
CARRIER_GRADE = "100.64.0.9"
SILENT = "198.51.100.9"
"""Behind the stand-in's router, and nobody's: what is sent there is never answered."""
EVERYONE = (PUBLIC, OTHER, METADATA, AZURE, NEIGHBOUR, CARRIER_GRADE)
PORT = 7777
TRUTH, LIE = "198.51.100.80", "203.0.113.66"
"""What the name server of `ROUTER` answers to any A query, and what the lying one at every other address does."""

_MARK = "SANDKEEP_TEST_NETNS"
_Result = TypeVar("_Result")


def private_network() -> None:
    """Move this process into a network namespace of its own, once: tables, sysctls and links vanish with it. Call it
    before any thread is started."""
    here = str(os.stat("/proc/thread-self/ns/net").st_ino)
    if os.environ.get(_MARK) == here:
        return
    namespaces.become_private()
    os.environ[_MARK] = str(os.stat("/proc/thread-self/ns/net").st_ino)
    namespaces.write_sysctl("ipv4/ip_forward", "1")
    with Netlink() as netlink:
        netlink.send(rtnetlink.link_up(LOOPBACK))


class _Tcp(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


class _Udp(socketserver.ThreadingUDPServer):
    daemon_threads = True


class _Talk(socketserver.BaseRequestHandler):
    """Tells a caller the address it sees, then gives back what it gets."""

    def handle(self) -> None:
        seen = self.client_address[0].encode()
        if isinstance(self.request, tuple):
            self.request[1].sendto(seen, self.client_address)
            return
        with contextlib.suppress(OSError):
            self.request.sendall(seen + b"\n")
            while data := self.request.recv(65536):
                self.request.sendall(data)


def answer_name(query: bytes, address: str, *, ttl: int = 60) -> bytes:
    """A DNS answer with one A record for any query; the name `big.` gets a TXT of 3000 bytes."""
    end = query.index(b"\0", 12) + 5
    question = query[12:end]
    if question.startswith(b"\3big"):
        text = b"\xff" + b"x" * 255
        record = b"\xc0\x0c" + struct.pack(">HHIH", 16, 1, ttl, 12 * len(text)) + 12 * text
    else:
        record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, ttl, 4) + socket.inet_aton(address)
    return query[:2] + b"\x81\x80" + struct.pack(">HHHH", 1, 1, 0, 0) + question + record


class NameServer:
    """UDP and TCP on one address of the current namespace; `queries` counts, `seen` keeps the last one's bytes."""

    def __init__(self, address: str, says: str, port: int = 53) -> None:
        server = self
        self.queries = 0
        self.seen = b""

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                if isinstance(self.request, tuple):
                    query, sock = self.request
                    server._note(query)
                    answer = answer_name(query, says)
                    if len(answer) > 512:
                        answer = answer[:2] + b"\x83\x80" + struct.pack(">HHHH", 1, 0, 0, 0) + query[12:]
                    sock.sendto(answer, self.client_address)
                    return
                with contextlib.suppress(OSError, struct.error):
                    while head := self.request.recv(2, socket.MSG_WAITALL):
                        query = self.request.recv(struct.unpack(">H", head)[0], socket.MSG_WAITALL)
                        server._note(query)
                        answer = answer_name(query, says)
                        self.request.sendall(struct.pack(">H", len(answer)) + answer)

        self._servers = (_Udp((address, port), Handler), _Tcp((address, port), Handler))
        _serve(self._servers)

    def _note(self, query: bytes) -> None:
        self.queries += 1
        self.seen = query

    def close(self) -> None:
        _stop(self._servers)


def _serve(servers: tuple[socketserver.BaseServer, ...]) -> None:
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


def _stop(servers: tuple[socketserver.BaseServer, ...]) -> None:
    for server in servers:
        server.shutdown()
        server.server_close()


def listeners(address: str = "0.0.0.0", *ports: int) -> tuple[socketserver.BaseServer, ...]:
    """TCP and UDP on these ports (default PORT) of the current namespace. UDP answers come from `address`."""
    made: list[socketserver.BaseServer] = []
    for port in ports or (PORT,):
        made += [_Tcp((address, port), _Talk), _Udp((address, port), _Talk)]
    _serve(tuple(made))
    return tuple(made)


@dataclass
class Internet:
    """`path`: its namespace. The names are served truthfully at ROUTER, by a liar at PUBLIC."""

    path: Path
    names: NameServer
    liar: NameServer
    servers: list[socketserver.BaseServer] = field(default_factory=list)


def inside(path: Path, function: Callable[[], _Result]) -> _Result:
    return namespaces.inside(path, function)


@contextlib.contextmanager
def internet(folder: Path, mtu: int = 1500, link: str = "world") -> Iterator[Internet]:
    path = folder / "internet"
    with namespaces.create(path) as inner, Netlink() as host:
        fd = os.open(path, os.O_RDONLY)
        host.send(rtnetlink.veth(link, b"\2\0\0\0\0\7", "eth0", b"\2\0\0\0\0\x08", fd, mtu))
        os.close(fd)
        index = socket.if_nametoindex(link)
        inner.send(*(rtnetlink.link_up(one) for one in (LOOPBACK, 2)), rtnetlink.address_add(2, ROUTER, 30))
        inner.send(*(rtnetlink.address_add(LOOPBACK, one, 32) for one in EVERYONE))
        host.send(rtnetlink.link_up(index), rtnetlink.address_add(index, UPLINK, 30))
        inner.send(rtnetlink.route_via(2, UPLINK))
        host.send(rtnetlink.route_via(index, ROUTER))
    try:
        made = inside(path, lambda: Internet(path, NameServer(ROUTER, TRUTH), NameServer(PUBLIC, LIE)))
        for address in (ROUTER, *EVERYONE):
            made.servers += inside(path, partial(listeners, address, PORT))
        yield made
        made.names.close()
        made.liar.close()
        _stop(tuple(made.servers))
    finally:
        namespaces.drop(path)
        with Netlink() as host, contextlib.suppress(OSError):
            host.send(rtnetlink.link_delete(socket.if_nametoindex(link)))


@contextlib.contextmanager
def host_listeners(*ports: int) -> Iterator[None]:
    """The host's own services, on all its addresses."""
    servers = listeners("0.0.0.0", *ports)
    try:
        yield
    finally:
        _stop(servers)


def dial(address: str, port: int = PORT, timeout: float = 2.0) -> str:
    """'seen as ADDRESS', 'refused', 'reset', 'unreachable' or 'silence', over TCP."""
    try:
        with socket.create_connection((address, port), timeout=timeout) as sock:
            return "seen as " + sock.recv(100).decode().strip()
    except TimeoutError:
        return "silence"
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:
        return "reset"
    except OSError:
        return "unreachable"


def ask(address: str, port: int = PORT, data: bytes = b"hello", timeout: float = 0.3) -> bytes | None:
    """One datagram and its answer; None for silence or an error."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect((address, port))
            sock.send(data)
            return sock.recv(65536)
        except OSError:
            return None


def query(name: str, kind: int = 1, identifier: int = 0x1234) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">HHHHHH", identifier, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def address_in(answer: bytes | None) -> str | None:
    """The A record of an answer of `answer_name`."""
    if answer is None or len(answer) < 16 or struct.unpack_from(">H", answer, 6)[0] == 0:
        return None
    return socket.inet_ntoa(answer[-4:])


def ask_by_tcp(address: str, data: bytes, port: int = 53, timeout: float = 2.0) -> bytes | None:
    try:
        with socket.create_connection((address, port), timeout=timeout) as sock:
            sock.sendall(struct.pack(">H", len(data)) + data)
            size = struct.unpack(">H", sock.recv(2, socket.MSG_WAITALL))[0]
            return sock.recv(size, socket.MSG_WAITALL)
    except (OSError, struct.error):
        return None


def vanish(sock: socket.socket) -> None:
    """Close a TCP socket without a word to its peer, as a killed user-space network stack does (TCP_REPAIR)."""
    sock.setsockopt(socket.IPPROTO_TCP, 19, 1)
    sock.close()
