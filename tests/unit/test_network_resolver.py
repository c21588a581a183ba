"""The resolver's pure parts: messages, resolv.conf, the token buckets."""

import os
import socket
import struct
from pathlib import Path

import pytest

from sandkeep.drivers.network import resolver_keeper
from sandkeep.drivers.network.layout import NetworkSettings
from sandkeep.drivers.network.resolver import message
from sandkeep.drivers.network.resolver.program import parse_arguments, parse_clients
from sandkeep.drivers.network.resolver.server import Server
from sandkeep.drivers.network.resolver.upstream import Servers, Upstream, parse_resolv_conf
from support.netns import answer_name, query


def test_a_plain_query() -> None:
    data = query("www.example.com", 28, 0xBEEF)
    parsed = message.parse_query(data)
    assert parsed is not None
    assert (parsed.identifier, parsed.error) == (0xBEEF, 0)
    assert parsed.question == data[12:]
    with_edns = data[:10] + b"\0\1" + data[12:] + b"\0\0\x29\x10\0\0\0\0\0\0\0"
    again = message.parse_query(with_edns)
    assert again is not None
    assert again.question == data[12:]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", None),
        (b"\0" * 11, None),
        (query("a")[:2] + b"\x81\x80" + query("a")[4:], None),  # an answer
        (query("a")[:2] + b"\x28\x00" + query("a")[4:], message.NOTIMP),  # UPDATE
        (query("a")[:4] + b"\0\2" + query("a")[6:], message.FORMERR),
        (query("a")[:-1], message.FORMERR),
        (query("a")[:12] + b"\xc0\x0c\0\1\0\1", message.FORMERR),  # a question that points at itself
        (query(".".join(["a" * 63] * 5)), message.FORMERR),  # longer than a name may be
        (b"\0" * 12, message.FORMERR),
    ],
)
def test_bad_queries(data: bytes, error: int | None) -> None:
    parsed = message.parse_query(data)
    assert (parsed.error if parsed else None) == error


def test_random_bytes_never_raise() -> None:
    for size in (12, 13, 40, 300):
        for _ in range(300):
            data = os.urandom(size)
            message.parse_query(data)
            message.answers(data, 1, query("a")[12:])


def test_an_answer_must_match() -> None:
    asked = query("Example.com", 1, 7)
    good = answer_name(query("eXample.com", 1, 7), "198.51.100.9")
    assert message.answers(good, 7, asked[12:])
    assert not message.answers(good, 8, asked[12:])
    assert not message.answers(asked, 7, asked[12:])
    assert not message.answers(answer_name(query("example.org", 1, 7), "198.51.100.9"), 7, asked[12:])
    assert not message.answers(answer_name(query("example.com", 28, 7), "198.51.100.9"), 7, asked[12:])
    refusal = struct.pack(">HHHHHH", 7, 0x8185, 0, 0, 0, 0)
    assert message.answers(refusal, 7, asked[12:])
    assert not message.answers(struct.pack(">HHHHHH", 7, 0x8180, 0, 0, 0, 0), 7, asked[12:])


def test_error_answers_repeat_the_question() -> None:
    data = query("a.b", 1, 99)
    parsed = message.parse_query(data)
    assert parsed is not None
    answer = message.error_answer(parsed, message.REFUSED)
    assert answer[:2] == data[:2]
    assert answer[12:] == data[12:]
    assert answer[2] & 0x81 == 0x81
    assert answer[3] & 0x8F == 0x85


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Servers()),
        ("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n", Servers(("127.0.0.53",))),
        ("# x\nnameserver 10.0.0.1\nnameserver 192.168.1.1 # home", Servers(("192.168.1.1",))),
        ("nameserver fe80::1%eth0\noptions timeout:1 attempts:9", Servers(("fe80::1%eth0",), 1.0, 3)),
        ("options timeout:60 attempts:x timeout:0", Servers(timeout=5.0)),
        ("\n".join(f"nameserver 192.0.2.{n}" for n in range(5)), Servers(("192.0.2.0", "192.0.2.1", "192.0.2.2"))),
        ("nameserver", Servers()),
    ],
)
def test_resolv_conf(text: str, expected: Servers) -> None:
    assert parse_resolv_conf(text, own="10.0.0.1") == expected


def test_a_missing_resolv_conf_means_this_host(tmp_path: Path) -> None:
    assert Upstream(str(tmp_path / "none")).servers() == Servers()


def test_clients() -> None:
    server = Server(Upstream("/dev/null"), parse_clients("10.210.0.0/16"))
    assert server.is_client("10.210.255.1")
    assert not server.is_client("10.211.0.1")
    assert not server.is_client("127.0.0.1")


def test_its_command_line_can_be_read_back(tmp_path: Path) -> None:
    settings = resolver_keeper.ResolverSettings(NetworkSettings("sk", tmp_path), 990, 991, Path("/x y/resolv.conf"))
    options = parse_arguments(resolver_keeper.resolver_argv(settings)[4:])
    assert (options.user, options.group, options.resolv_conf) == (990, 991, "/x y/resolv.conf")
    assert parse_clients(options.clients) == (int.from_bytes(socket.inet_aton("10.210.0.0"), "big"), 0xFFFF0000)


def test_a_process_is_named_by_its_start() -> None:
    assert resolver_keeper.start_time(os.getpid()) == resolver_keeper.start_time(os.getpid())
    assert resolver_keeper.start_time(2**22 + 1) is None
