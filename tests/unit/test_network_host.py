"""What others' firewalls and routes mean for us, from listings; and what conntrack's bytes mean."""

import socket
import struct
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from sandkeep.drivers.network import conntrack, host, rtnetlink
from sandkeep.drivers.network.layout import NetworkSettings
from sandkeep.drivers.network.rtnetlink import Route, attribute, attributes

SETTINGS = NetworkSettings("sk", Path("/run/sk"))


def chain(table: str, name: str, hook: str | None = None, policy: str = "accept", family: str = "ip") -> dict[str, Any]:
    base = {"type": "filter", "hook": hook, "prio": 0, "policy": policy} if hook else {}
    return {"chain": {"family": family, "table": table, "name": name, **base}}


def rule(table: str, name: str, *expr: dict[str, Any], comment: str = "", family: str = "ip") -> dict[str, Any]:
    return {"rule": {"family": family, "table": table, "chain": name, "handle": 9, "comment": comment, "expr": expr}}


DOCKER = [chain("filter", "FORWARD", "forward", "drop"), chain("filter", "DOCKER-USER"), chain("filter", "DOCKER")]
UFW = [
    chain("filter", "INPUT", "input", "drop"),
    chain("filter", "FORWARD", "forward", "drop"),
    chain("filter", "ufw-user-input"),
]
FIREWALLD = [
    chain("firewalld", "filter_FORWARD", "forward", family="inet"),
    rule("firewalld", "filter_FORWARD", {"reject": {"type": "icmpx"}}, family="inet"),
]
QUIET = [chain("filter", "FORWARD", "forward"), chain("sk_guard", "forward", "forward", "drop", family="inet")]
MENDED = [*DOCKER, rule("filter", "DOCKER-USER", {"accept": None}, comment="sandkeep:sk")]


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([], []),
        (QUIET, []),
        (DOCKER, [("FORWARD", "DOCKER-USER", "Docker")]),
        (UFW, [("FORWARD", "FORWARD", "ufw"), ("INPUT", "INPUT", "ufw")]),
        (FIREWALLD, [("filter_FORWARD", "filter_FORWARD", "firewalld")]),
        (MENDED, []),
    ],
)
def test_who_drops(objects: list[dict[str, Any]], expected: list[tuple[str, str, str]]) -> None:
    found = host.find_drops(objects, SETTINGS)
    assert [(one.name, one.rules_go_to, one.owner) for one in found] == expected


def test_the_rules_for_them() -> None:
    forward, enter = host.find_drops(UFW, SETTINGS)
    assert host.accept_rules(forward, SETTINGS) == [
        'insert rule ip filter FORWARD oifname "skv*" counter accept comment "sandkeep:sk"',
        'insert rule ip filter FORWARD iifname "skv*" counter accept comment "sandkeep:sk"',
    ]
    assert host.accept_rules(enter, SETTINGS) == [
        'insert rule ip filter INPUT iifname "skv*" counter accept comment "sandkeep:sk"'
    ]


@pytest.mark.parametrize(
    ("network", "interface", "clash"),
    [
        ("0.0.0.0/0", "eth0", False),
        ("192.168.1.0/24", "eth0", False),
        ("10.210.3.0/24", "docker0", True),
        ("10.0.0.0/8", "tun0", True),
        ("10.0.0.0/24", "eth0", True),
        ("10.210.0.5/32", "skv5", False),
        ("10.0.0.1/32", "otherv1", False),
    ],
)
def test_overlaps(network: str, interface: str, clash: bool) -> None:
    found = host.find_overlaps([Route(IPv4Network(network), 4)], {4: interface}, SETTINGS)
    assert bool(found) is clash


def test_attributes_are_padded_and_read_back() -> None:
    data = attribute(3, b"abcde") + attribute(4 | 0x8000, b"\1\2\3\4")
    assert len(data) == 12 + 8
    assert attributes(data) == {3: b"abcde", 4: b"\1\2\3\4"}
    assert attributes(b"\0\0\0\0") == {}


def test_a_veth_has_its_peer_inside() -> None:
    made = rtnetlink.veth("skv1", bytes(6), "eth0", bytes(6), 42, 1400)
    top = attributes(made.body[16:])
    peer = attributes(attributes(attributes(top[18])[2])[1][16:])
    assert (top[3], peer[3]) == (b"skv1\0", b"eth0\0")
    assert struct.unpack("=I", peer[28])[0] == 42
    assert struct.unpack("=I", peer[4])[0] == 1400


def entry(protocol: int, state: int | None) -> bytes:
    ends = attribute(1, socket.inet_aton("10.210.0.5")) + attribute(2, socket.inet_aton("198.51.100.1"))
    ports = attribute(1, bytes([protocol])) + attribute(2, b"\x9c\x40") + attribute(3, b"\x01\xbb")
    data = b"\2\0\0\0" + attribute(0x8001, attribute(0x8001, ends) + attribute(0x8002, ports))
    if state is not None:
        data += attribute(0x8004, attribute(0x8001, attribute(1, bytes([state]))))
    return data


def test_conntrack_entries() -> None:
    flow = conntrack.parse(entry(socket.IPPROTO_TCP, 3))
    assert flow is not None
    assert (flow.source, flow.source_port) == ("10.210.0.5", 40000)
    assert (flow.destination, flow.destination_port) == ("198.51.100.1", 443)
    assert flow.is_live_tcp
    packet = conntrack.provocation(flow)
    assert packet[12:20] == socket.inet_aton("10.210.0.5") + socket.inet_aton("198.51.100.1")
    assert packet[33] == 0x02
    pseudo = packet[12:20] + struct.pack(">BBH", 0, socket.IPPROTO_TCP, 20)
    assert conntrack.checksum(pseudo + packet[20:]) == 0
    for other in (entry(socket.IPPROTO_TCP, 7), entry(socket.IPPROTO_UDP, None)):
        parsed = conntrack.parse(other)
        assert parsed is not None
        assert not parsed.is_live_tcp
        assert not parsed.is_connecting_tcp
    assert conntrack.parse(b"\2\0\0\0") is None


def test_a_refusal_quotes_what_the_inside_sent() -> None:
    flow = conntrack.parse(entry(socket.IPPROTO_TCP, 1))
    assert flow is not None
    assert flow.is_connecting_tcp
    packet = conntrack.refusal(flow)
    assert packet[9] == socket.IPPROTO_ICMP
    assert packet[12:20] == socket.inet_aton("10.0.0.1") + socket.inet_aton("10.210.0.5")
    assert packet[20:22] == bytes([3, 3])
    assert conntrack.checksum(packet[20:]) == 0
    assert packet[40:48] == socket.inet_aton("10.0.0.2") + socket.inet_aton("198.51.100.1")
    assert packet[48:52] == struct.pack(">HH", 40000, 443)
