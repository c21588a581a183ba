"""Names, addresses and nft texts: pure functions of the settings."""

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from sandkeep.domain.errors import InvalidArgument
from sandkeep.domain.sandbox import NetworkMode
from sandkeep.drivers.network import rulesets
from sandkeep.drivers.network.layout import REFUSED, NetworkSettings, parse_namespace
from sandkeep.drivers.network.rulesets import BLOCKED, RESETTING, TO_HOST, TO_OUTSIDE, Kernel

SETTINGS = NetworkSettings("sk", Path("/run/sk"))


def test_names_derive_from_prefix_and_slot() -> None:
    assert SETTINGS.interface(7) == "skv7"
    assert SETTINGS.address(1) == "10.210.0.1"
    assert SETTINGS.address(300) == "10.210.1.44"
    assert SETTINGS.namespace("sbx_" + "a" * 20, 7) == Path("/run/sk/netns/7-" + "a" * 20)
    assert SETTINGS.slots == 65534
    assert len(SETTINGS.interface(SETTINGS.slots)) <= 15
    assert NetworkSettings("abcdefgh", Path("/run/x")).slots == 65534
    assert NetworkSettings("sk", Path("/run/x"), IPv4Network("10.1.2.0/24")).slots == 254


@pytest.mark.parametrize("prefix", ["", "Sk", "1a", "sv", "a-b", "ninechars", "a b", "a*"])
def test_a_prefix_that_could_match_others_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidArgument):
        NetworkSettings(prefix, Path("/run/x"))


@pytest.mark.parametrize("text", ["10.0.0.0/8", "10.0.0.0/29", "10.9.9.9/32"])
def test_a_useless_range_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        NetworkSettings("sk", Path("/run/x"), IPv4Network(text))


@pytest.mark.parametrize(
    ("name", "slot"),
    [("skv1", 1), ("skv65534", 65534), ("skv0", None), ("skv", None), ("skv1x", None), ("askv1", None)],
)
def test_only_our_interfaces_are_ours(name: str, slot: int | None) -> None:
    assert SETTINGS.slot_of(name) == slot


@pytest.mark.parametrize(
    ("name", "expected"),
    [("12-" + "a" * 20, (12, "a" * 20)), ("0-" + "a" * 20, None), ("12-short", None), ("resolver.json", None)],
)
def test_namespace_file_names(name: str, expected: tuple[int, str] | None) -> None:
    assert parse_namespace(name) == expected


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "10.1.2.3", "172.31.0.1", "192.168.1.1", "100.100.100.200", "127.0.0.53", "0.0.0.0"),
        *("224.0.0.251", "255.255.255.255", "168.63.129.16", "192.0.0.192", "198.19.0.1", "240.0.0.1"),
    ],
)
def test_no_policy_opens_these(address: str) -> None:
    assert any(IPv4Address(address) in IPv4Network(one) for one in REFUSED)


@pytest.mark.parametrize("address", ["1.1.1.1", "198.51.100.1", "203.0.113.9", "192.0.1.1", "172.32.0.1", "11.0.0.1"])
def test_the_public_is_not_refused(address: str) -> None:
    assert not any(IPv4Address(address) in IPv4Network(one) for one in REFUSED)


def test_base_chains_name_only_ours_and_drop_nothing_by_policy() -> None:
    text = rulesets.base(SETTINGS)
    assert "policy" not in text
    lines, inside_hook = text.splitlines(), False
    for line in lines:
        if " hook " in line:
            inside_hook = True
        elif line.strip() == "}":
            inside_hook = False
        elif inside_hook:
            assert any(ours in line for ours in ('"skv*"', "@blocked", "@resetting", "10.210.0.0/16")), line


def test_refused_comes_before_established() -> None:
    text = rulesets.base(SETTINGS)
    chain = text[text.index("chain from_inside {") :]
    assert chain.index("@refused") < chain.index("vmap @to_outside")
    assert "established" not in chain[: chain.index("vmap @to_outside")]


def test_the_version_follows_the_text() -> None:
    other = NetworkSettings("sk", Path("/run/sk"), also_refused=(IPv4Network("203.0.113.0/24"),))
    assert rulesets.base_version(SETTINGS) in rulesets.base(SETTINGS)
    assert rulesets.base_version(SETTINGS) != rulesets.base_version(other)
    assert "203.0.113.0/24" in rulesets.base(other)


def test_a_public_address_range_of_ours_is_refused_too() -> None:
    odd = NetworkSettings("sk", Path("/run/sk"), IPv4Network("203.0.113.0/24"))
    assert "203.0.113.0/24" in rulesets.base(odd)


def test_modes() -> None:
    assert rulesets.expected(NetworkMode.NONE) == {"in", "out"}
    assert rulesets.expected(NetworkMode.INTERNET) == {"in", "out", TO_OUTSIDE, TO_HOST}


def test_add_and_remove() -> None:
    added = rulesets.add(SETTINGS, 5, rulesets.expected(NetworkMode.INTERNET) | {BLOCKED})
    assert 'add element inet sk_guard to_outside { "skv5" : goto internet }' in added
    assert 'add element inet sk_guard blocked { "skv5" }' in added
    assert "flush chain netdev sk_link in5" in added
    assert "add rule netdev sk_link in5 ip saddr set 10.210.0.5" in added
    removed = rulesets.remove(SETTINGS, 5, {"in", TO_OUTSIDE})
    assert removed.splitlines() == [
        'delete element inet sk_guard to_outside { "skv5" : goto internet }',
        "flush chain netdev sk_link in5",
        "delete chain netdev sk_link in5",
    ]


def test_install_keeps_what_is_there() -> None:
    kept = Kernel("version_old", True, {3: frozenset({"in", "out", TO_OUTSIDE, RESETTING})})
    lines = rulesets.install(SETTINGS, kept, present=True).splitlines()
    assert lines[0] == "delete table inet sk_guard"
    assert lines[-2:] == [
        'add element inet sk_guard resetting { "skv3" }',
        'add element inet sk_guard to_outside { "skv3" : goto internet }',
    ]
    assert not rulesets.install(SETTINGS, kept, present=False).startswith("delete")


GUARD = """table inet sk_guard {
\tmap to_outside {
\t\ttype ifname : verdict
\t\telements = { "skv1" : goto internet,
\t\t\t     "otherv2" : goto internet }
\t}

\tset blocked {
\t\ttype ifname
\t\telements = { "skv9" }
\t}

\tchain version_0123 {
\t}
}
"""
LINK = """table netdev sk_link {
\tchain out1 {
\t\ttype filter hook egress device "skv1" priority filter; policy accept;
\t\tarp daddr ip 10.210.0.1 arp daddr ip set 10.0.0.2
\t\tmeta protocol != { ip, arp } drop
\t\tip daddr 10.210.0.1 ip daddr set 10.0.0.2
\t}

\tchain in1 {
\t\ttype filter hook ingress device "skv1" priority filter; policy accept;
\t}
}
"""


def test_parse_tells_what_is_there_and_what_is_hollow() -> None:
    kernel = rulesets.parse(SETTINGS, GUARD, LINK)
    assert kernel.slots == {1: {"out", "in", TO_OUTSIDE}, 9: {BLOCKED}}
    assert kernel.hollow == {(1, "in")}
    assert kernel.version == ""  # its rules are missing
    assert rulesets.parse(SETTINGS, None, None) == Kernel(None, False, {})
