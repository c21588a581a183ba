"""Ends what a killed sandbox leaves in conntrack: peers outside get a reset, and nobody inherits its flows.

A SIGKILLed user-space network stack says goodbye to nobody, so peers would wait for ever. The kernel still knows the
connections, but not their sequence numbers, which a reset must carry exactly. So each peer is asked for them: a SYN in
an established connection must be answered by a challenge ACK (RFC 5961, section 4), and since by then the sandbox's
route is gone, the `departed` chain answers that ACK by a reset with the right number. The same chain resets whatever
a peer sends by itself as long as the entry lives, which is set to 10 seconds here.

It knows also the connections that wait for their first answer, which nobody may ever send: `refuse_connecting` answers.
"""

import contextlib
import errno
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass

from sandkeep.drivers.network.layout import GATEWAY, INNER
from sandkeep.drivers.network.rtnetlink import Netlink, Request, attribute, attributes

_NETLINK_NETFILTER = 12
_CTNETLINK = 1 << 8
_NEW, _GET, _DELETE = _CTNETLINK, _CTNETLINK | 1, _CTNETLINK | 2
_NESTED = 0x8000

_TUPLE_ORIG, _PROTOINFO, _TIMEOUT, _FILTER = 1, 4, 7, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_V4_SRC, _V4_DST = 1, 2
_PROTO_NUM, _SRC_PORT, _DST_PORT, _ICMP_ID, _ICMP_TYPE, _ICMP_CODE = 1, 2, 3, 4, 5, 6
_PROTOINFO_TCP, _TCP_STATE = 1, 1
_ORIG_FLAGS, _REPLY_FLAGS, _BY_SOURCE = 1, 2, 1

_ESTABLISHED, _FIN_WAIT, _CLOSE_WAIT, _CLOSE = 3, 4, 5, 8
_SYN_SENT, _SYN_RECEIVED = 1, 2
_LIVE = frozenset({_ESTABLISHED, _FIN_WAIT, _CLOSE_WAIT})
_GRACE = 10
"""Seconds for the challenge ACK and the reset: what the kernel itself gives a closed connection."""
_BATCH = 64
_UNREACHABLE, _PORT = 3, 3


@dataclass(frozen=True)
class Flow:
    """A conntrack entry that a sandbox opened. `tuple_` is its original tuple as the kernel packs it."""

    protocol: int
    source: str
    destination: str
    source_port: int
    destination_port: int
    tcp_state: int
    tuple_: bytes

    @property
    def is_live_tcp(self) -> bool:
        return self.protocol == socket.IPPROTO_TCP and self.tcp_state in _LIVE

    @property
    def is_connecting_tcp(self) -> bool:
        return self.protocol == socket.IPPROTO_TCP and self.tcp_state in (_SYN_SENT, _SYN_RECEIVED)


def _nfgen() -> bytes:
    return struct.pack("=BBH", socket.AF_INET, 0, 0)


def query(source: str | None) -> bytes:
    """A dump request for the IPv4 entries whose original source is this address (filtered in the kernel since 5.8),
    or for all. Either way the kernel walks its whole table, 10 ms on a host of 24 GB."""
    if source is None:
        return _nfgen()
    wanted = attribute(_TUPLE_IP | _NESTED, attribute(_V4_SRC, socket.inet_aton(source)))
    flags = attribute(_ORIG_FLAGS, struct.pack("=I", _BY_SOURCE)) + attribute(_REPLY_FLAGS, struct.pack("=I", 0))
    return _nfgen() + attribute(_TUPLE_ORIG | _NESTED, wanted) + attribute(_FILTER | _NESTED, flags)


def parse(answer: bytes) -> Flow | None:
    """One entry of a dump; None when it is not IPv4."""
    parts = attributes(answer[4:])
    original = parts.get(_TUPLE_ORIG, b"")
    halves = attributes(original)
    ends, proto = attributes(halves.get(_TUPLE_IP, b"")), attributes(halves.get(_TUPLE_PROTO, b""))
    if _V4_SRC not in ends or _V4_DST not in ends or _PROTO_NUM not in proto:
        return None
    tcp = attributes(attributes(parts.get(_PROTOINFO, b"")).get(_PROTOINFO_TCP, b""))
    return Flow(
        protocol=proto[_PROTO_NUM][0],
        source=socket.inet_ntoa(ends[_V4_SRC]),
        destination=socket.inet_ntoa(ends[_V4_DST]),
        source_port=int.from_bytes(proto.get(_SRC_PORT, b""), "big"),
        destination_port=int.from_bytes(proto.get(_DST_PORT, b""), "big"),
        tcp_state=tcp.get(_TCP_STATE, b"\0")[0],
        tuple_=attribute(_TUPLE_ORIG | _NESTED, original),
    )


def closing(flow: Flow) -> Request:
    """The entry becomes a closed connection that is forgotten after the grace: a challenge ACK cannot revive it, as
    it would an established one (five days)."""
    state = attribute(_PROTOINFO_TCP | _NESTED, attribute(_TCP_STATE, bytes([_CLOSE])))
    body = flow.tuple_ + attribute(_PROTOINFO | _NESTED, state) + attribute(_TIMEOUT, struct.pack(">I", _GRACE))
    return Request(_NEW, 0, _nfgen() + body)


def forgetting(flow: Flow) -> Request:
    return Request(_DELETE, 0, _nfgen() + flow.tuple_)


def provocation(flow: Flow) -> bytes:
    """An IPv4 packet with a SYN from the sandbox's own address and port; the kernel's NAT does the rest."""
    source, destination = socket.inet_aton(flow.source), socket.inet_aton(flow.destination)
    tcp = struct.pack(">HHIIBBHHH", flow.source_port, flow.destination_port, 0, 0, 5 << 4, 0x02, 1024, 0, 0)
    pseudo = source + destination + struct.pack(">BBH", 0, socket.IPPROTO_TCP, len(tcp))
    tcp = tcp[:16] + struct.pack(">H", checksum(pseudo + tcp)) + tcp[18:]
    return _ipv4(socket.IPPROTO_TCP, flow.source, flow.destination) + tcp


def refusal(flow: Flow) -> bytes:
    """An IPv4 packet that tells the inside, by ICMP from its gateway, that nobody listens there. It quotes what the
    inside sent, with its own address; not the sequence number, which only that stack knows and gVisor does not ask."""
    quoted = _ipv4(socket.IPPROTO_TCP, INNER, flow.destination, length=40)
    quoted += struct.pack(">HHI", flow.source_port, flow.destination_port, 0)
    icmp = struct.pack(">BBHI", _UNREACHABLE, _PORT, 0, 0) + quoted
    icmp = icmp[:2] + struct.pack(">H", checksum(icmp)) + icmp[4:]
    return _ipv4(socket.IPPROTO_ICMP, GATEWAY, flow.source) + icmp


def _ipv4(protocol: int, source: str, destination: str, length: int = 0) -> bytes:
    """A header. Where it is sent, the kernel fills in length, identification and checksum (raw(7))."""
    ends = socket.inet_aton(source), socket.inet_aton(destination)
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, length, 0, 0, 64, protocol, 0, *ends)


def checksum(data: bytes) -> int:
    """RFC 1071, over an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def flows_of(addresses: Collection[str], netlink: Netlink) -> list[Flow]:
    """None on a host without conntrack."""
    only = next(iter(addresses)) if len(addresses) == 1 else None
    try:
        found = [parse(answer) for _, answer in netlink.dump(_GET, query(only))]
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):
            return []
        raise
    wanted = frozenset(addresses)  # compared here, too: a kernel without the filter dumps everything
    return [flow for flow in found if flow is not None and flow.source in wanted]


def end_flows(addresses: Collection[str]) -> int:
    """Call it when the routes to these addresses are gone: resets their live TCP connections to the outside, forgets
    all other flows. Returns how many peers were told. A host without conntrack has nothing to end. Raises OSError."""
    if not addresses:
        return 0
    with Netlink(_NETLINK_NETFILTER) as netlink:
        flows = flows_of(addresses, netlink)
        if not flows:
            return 0
        live = [flow for flow in flows if flow.is_live_tcp]
        dead = [flow for flow in flows if not flow.is_live_tcp]
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.setblocking(False)
            for flow in live:
                with contextlib.suppress(OSError):  # its route is gone, or the queue is full: it times out instead
                    raw.sendto(provocation(flow), (flow.destination, 0))
        requests = [*map(closing, live), *map(forgetting, dead)]
        for start in range(0, len(requests), _BATCH):
            with contextlib.suppress(FileNotFoundError):  # entries end by themselves, too
                netlink.send(*requests[start : start + _BATCH])
        return len(live)


def refuse_connecting(address: str) -> int:
    """Every connection from this address to the outside that waits for its first answer gets one. Returns how many.
    Raises OSError."""
    with Netlink(_NETLINK_NETFILTER) as netlink:
        flows = [flow for flow in flows_of([address], netlink) if flow.is_connecting_tcp]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for flow in flows:
            raw.sendto(refusal(flow), (flow.source, 0))
    return len(flows)
