"""Raw rtnetlink: pure packers of requests, and one socket that sends them. 20 to 100 us a request.

A socket stays in the network namespace of the thread that opened it. Structures: rtnetlink(7), linux/rtnetlink.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Self

_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
CREATE, REPLACE = 0x600, 0x500
"""NLM_F_CREATE with NLM_F_EXCL, or with NLM_F_REPLACE."""

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _GETADDR = 20, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWNEIGH = 28

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 18, 28
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 1, 4, 5, 6
_NDA_DST, _NDA_LLADDR = 1, 2

_TABLE_MAIN, _PROTO_STATIC, _UNICAST, _UNREACHABLE = 254, 4, 1, 7
_SCOPE_LINK = 253
_UP = 1
_LAST_METRIC = 0xFFFFFFF0
"""Any other route to the same range wins over ours."""

LOOPBACK = 1


@dataclass(frozen=True)
class Request:
    kind: int
    flags: int
    body: bytes


@dataclass(frozen=True)
class Route:
    destination: IPv4Network
    interface: int


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """type -> value (the last of a type), without the nested and byte-order flags."""
    found, offset = {}, 0
    while offset + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, offset)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    return found


def _name(text: str) -> bytes:
    return attribute(_IFLA_IFNAME, text.encode() + b"\0")


def _link(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, change)


def veth(name: str, mac: bytes, peer: str, peer_mac: bytes, namespace_fd: int, mtu: int) -> Request:
    """A pair: `name` here, `peer` born right in the namespace behind `namespace_fd`; both down."""
    size = attribute(_IFLA_MTU, struct.pack("=I", mtu))
    inside = _link() + _name(peer) + attribute(_IFLA_ADDRESS, peer_mac) + size
    inside += attribute(_IFLA_NET_NS_FD, struct.pack("=I", namespace_fd))
    info = attribute(_INFO_KIND, b"veth\0") + attribute(_INFO_DATA, attribute(_VETH_PEER, inside))
    outside = _link() + _name(name) + attribute(_IFLA_ADDRESS, mac) + size + attribute(_IFLA_LINKINFO, info)
    return Request(_NEWLINK, CREATE, outside)


def link_up(index: int) -> Request:
    return Request(_NEWLINK, 0, _link(index, _UP, _UP))


def link_delete(index: int) -> Request:
    return Request(_DELLINK, 0, _link(index))


def address_add(index: int, address: str, prefix: int, *, link_scope: bool = False) -> Request:
    packed = socket.inet_aton(address)
    head = struct.pack("=BBBBi", socket.AF_INET, prefix, 0, _SCOPE_LINK if link_scope else 0, index)
    return Request(_NEWADDR, REPLACE, head + attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed))


def _route_head(prefix: int, scope: int, kind: int) -> bytes:
    return struct.pack("=8BI", socket.AF_INET, prefix, 0, 0, _TABLE_MAIN, _PROTO_STATIC, scope, kind, 0)


def route_to(index: int, address: str) -> Request:
    """This one address lives on that link."""
    body = attribute(_RTA_DST, socket.inet_aton(address)) + attribute(_RTA_OIF, struct.pack("=i", index))
    return Request(_NEWROUTE, REPLACE, _route_head(32, _SCOPE_LINK, _UNICAST) + body)


def route_delete(index: int, address: str) -> Request:
    return Request(_DELROUTE, 0, route_to(index, address).body)


def route_via(index: int, gateway: str) -> Request:
    """The default route."""
    body = attribute(_RTA_GATEWAY, socket.inet_aton(gateway)) + attribute(_RTA_OIF, struct.pack("=i", index))
    return Request(_NEWROUTE, REPLACE, _route_head(0, 0, _UNICAST) + body)


def _unreachable(network: IPv4Network) -> bytes:
    body = attribute(_RTA_DST, network.network_address.packed)
    body += attribute(_RTA_PRIORITY, struct.pack("=I", _LAST_METRIC))
    return _route_head(network.prefixlen, 0, _UNREACHABLE) + body


def unreachable_add(network: IPv4Network) -> Request:
    """Addresses of this range that no other route knows are unreachable, instead of leaving by the default route."""
    return Request(_NEWROUTE, REPLACE, _unreachable(network))


def unreachable_delete(network: IPv4Network) -> Request:
    return Request(_DELROUTE, 0, _unreachable(network))


def neighbour_add(index: int, address: str, mac: bytes) -> Request:
    """Permanent: no ARP for this address."""
    head = struct.pack("=BxxxiHBB", socket.AF_INET, index, 0x80, 0, 0)
    ends = attribute(_NDA_DST, socket.inet_aton(address)) + attribute(_NDA_LLADDR, mac)
    return Request(_NEWNEIGH, REPLACE, head + ends)


class Netlink:
    """One socket, for one thread at a time. Every error of the kernel is an OSError with its errno."""

    def __init__(self, family: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        try:
            self._socket.settimeout(10)
            self._socket.bind((0, 0))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *requests: Request) -> None:
        """All requests in one packet. The kernel carries out every one of them; then the first error is raised."""
        packet = b"".join(
            struct.pack("=IHHII", 16 + len(one.body), one.kind, one.flags | _REQUEST | _ACK, number, 0) + one.body
            for number, one in enumerate(requests, 1)
        )
        self._socket.send(packet)
        first = 0
        for _ in requests:
            answer = self._socket.recv(65536)
            kind, code = struct.unpack_from("=H", answer, 4)[0], struct.unpack_from("=i", answer, 16)[0]
            if kind == _ERROR and code and not first:
                first = -code
        if first:
            raise OSError(first, os.strerror(first))

    def dump(self, kind: int, body: bytes, flags: int = _DUMP) -> Iterator[tuple[int, bytes]]:
        """(message type, body) of every answer. Without NLM_F_DUMP in `flags`, the one answer."""
        self._socket.send(struct.pack("=IHHII", 16 + len(body), kind, flags | _REQUEST, 1, 0) + body)
        while True:
            data, offset = self._socket.recv(1 << 18), 0
            while offset + 16 <= len(data):
                size, answer = struct.unpack_from("=IH", data, offset)
                if answer == _DONE:
                    return
                if answer == _ERROR:
                    code = -struct.unpack_from("=i", data, offset + 16)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                yield answer, data[offset + 16 : offset + size]
                offset += (size + 3) & ~3
            if not flags & _DUMP:
                return

    def uplink_mtu(self, towards: str = "192.88.99.1") -> int | None:
        """MTU in bytes of the interface by which a public address would be reached; None without a route. Sends
        nothing: it asks the routing table."""
        body = _route_head(32, 0, 0) + attribute(_RTA_DST, socket.inet_aton(towards))
        try:
            for _, answer in self.dump(_GETROUTE, body, flags=0):
                index = attributes(answer[12:]).get(_RTA_OIF)
                if index:
                    for _, found in self.dump(_GETLINK, _link(struct.unpack("=i", index)[0]), flags=0):
                        return int(struct.unpack("=I", attributes(found[16:])[_IFLA_MTU])[0])
        except OSError:
            return None
        return None

    def link(self, name: str) -> tuple[int, bool] | None:
        """(index, up) of the interface of this name in the socket's namespace; None when there is none."""
        try:
            for _, answer in self.dump(_GETLINK, _link() + _name(name), flags=0):
                index, flags = struct.unpack_from("=iI", answer, 4)
                return index, bool(flags & _UP)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
        return None

    def routes(self) -> list[Route]:
        """The IPv4 routes of the main table that lead to an interface."""
        found = []
        for kind, answer in self.dump(_GETROUTE, _route_head(0, 0, 0)):
            if kind != _NEWROUTE or answer[4] != _TABLE_MAIN or answer[7] != _UNICAST:
                continue
            parts = attributes(answer[12:])
            target = parts.get(_RTA_DST, b"\0\0\0\0")
            index = struct.unpack("=i", parts.get(_RTA_OIF, b"\0\0\0\0"))[0]
            found.append(Route(IPv4Network((target, answer[1])), index))
        return found

    def addresses(self) -> list[Route]:
        """The networks of the host's own IPv4 addresses, with their interfaces."""
        found = []
        for kind, answer in self.dump(_GETADDR, struct.pack("=BBBBi", socket.AF_INET, 0, 0, 0, 0)):
            if kind == _NEWADDR and answer[0] == socket.AF_INET:
                address = attributes(answer[8:]).get(_IFA_ADDRESS, b"\0\0\0\0")
                index = struct.unpack_from("=i", answer, 4)[0]
                found.append(Route(IPv4Network((address, answer[1]), strict=False), index))
        return found
