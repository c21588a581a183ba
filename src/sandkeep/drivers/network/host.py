"""What the rest of the host may have against our packets: for doctor, which reports, and setup, which mends.

Docker, ufw and firewalld drop what they do not know in the forward or input hook, and no accept of ours overrides that:
every base chain of a hook must let a packet pass. So one rule goes into each of theirs, marked by a comment. Our own
chains still decide. All functions are synchronous and need root.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from sandkeep.drivers.network.layout import GATEWAY, INNER_NETWORK, NetworkSettings
from sandkeep.drivers.network.nftables import Nft
from sandkeep.drivers.network.rtnetlink import Netlink, Route

_HOOKS = ("forward", "input")
_USERS_CHAIN = "DOCKER-USER"
_FAMILIES = ("ip", "inet")
_SHARED = IPv4Network(f"{GATEWAY}/32")


@dataclass(frozen=True, order=True)
class ForeignChain:
    """A base chain of somebody else that drops by default. rules_go_to: the chain whose head is meant for rules of the
    administrator (Docker's DOCKER-USER), or itself. owner: who it most likely belongs to."""

    family: str
    table: str
    name: str
    hook: str
    rules_go_to: str
    owner: str


@dataclass(frozen=True)
class OverlappingRoute:
    network: IPv4Network
    interface: str
    ours: IPv4Network


def forwarding_enabled() -> bool:
    """net.ipv4.ip_forward of this host: without it no sandbox reaches the outside."""
    with open("/proc/sys/net/ipv4/ip_forward") as file:
        return file.read().strip() == "1"


def legacy_tables() -> bool:
    """Whether iptables-legacy tables are loaded here: nft cannot see them, so nor can `forward_policy_drops`."""
    try:
        with open("/proc/net/ip_tables_names") as file:
            return "filter" in file.read().split()
    except FileNotFoundError:
        return False


def forward_policy_drops(nft: Nft, settings: NetworkSettings) -> list[ForeignChain]:
    """Chains of others that would drop our packets and that let none of ours pass yet. Raises NftError."""
    return find_drops(nft.listing("list ruleset"), settings)


def find_drops(objects: Sequence[dict[str, Any]], settings: NetworkSettings) -> list[ForeignChain]:
    """Pure: from the objects of `nft -j list ruleset`."""
    chains = [one["chain"] for one in objects if "chain" in one]
    rules = [one["rule"] for one in objects if "rule" in one]
    found = []
    for chain in chains:
        if chain.get("hook") not in _HOOKS or chain.get("type") != "filter" or chain["family"] not in _FAMILIES:
            continue
        if chain["table"] == settings.guard_table:
            continue
        mine = [one for one in rules if _place(one) == (chain["family"], chain["table"], chain["name"])]
        if chain.get("policy") != "drop" and not _ends_in_refusal(mine):
            continue
        names = {one["name"] for one in chains if (one["family"], one["table"]) == (chain["family"], chain["table"])}
        target = _USERS_CHAIN if chain["hook"] == "forward" and _USERS_CHAIN in names else chain["name"]
        marked = (chain["family"], chain["table"], target)
        if any(_place(one) == marked and one.get("comment") == _mark(settings) for one in rules):
            continue
        found.append(ForeignChain(*marked[:2], chain["name"], chain["hook"], target, _owner(chain["table"], names)))
    return sorted(found)


def _place(rule: dict[str, Any]) -> tuple[str, str, str]:
    return rule["family"], rule["table"], rule["chain"]


def _ends_in_refusal(rules: Sequence[dict[str, Any]]) -> bool:
    """firewalld: the policy is accept, and the last rule refuses all."""
    last = rules[-1]["expr"] if rules else []
    return len(last) == 1 and bool({"drop", "reject"} & last[0].keys())


def _owner(table: str, chains: set[str]) -> str:
    if table == "firewalld":
        return "firewalld"
    if any(name.startswith("ufw-") for name in chains):
        return "ufw"
    if any(name.startswith("DOCKER") for name in chains):
        return "Docker"
    return "the administrator"


def _mark(settings: NetworkSettings) -> str:
    return f"sandkeep:{settings.prefix}"


def accept_rules(chain: ForeignChain, settings: NetworkSettings) -> list[str]:
    """The nft commands for one chain; forward needs both directions."""
    where = f"{chain.family} {chain.table} {chain.rules_go_to}"
    ends = ("oifname", "iifname") if chain.hook == "forward" else ("iifname",)
    tail = f'"{settings.all_interfaces}" counter accept comment "{_mark(settings)}"'
    return [f"insert rule {where} {end} {tail}" for end in ends]


def insert_accept_rule(nft: Nft, settings: NetworkSettings) -> list[ForeignChain]:
    """Let our packets pass wherever `forward_policy_drops` finds they would not. Idempotent. Returns the chains that
    were changed. Raises NftError (a table may belong to a process that lets nobody else change it)."""
    chains = forward_policy_drops(nft, settings)
    if chains:
        nft.run("\n".join(line for chain in chains for line in accept_rules(chain, settings)))
    return chains


def remove_accept_rule(nft: Nft, settings: NetworkSettings) -> int:
    """Take back every rule that carries this instance's mark, wherever it is. Returns how many."""
    lines = []
    for one in nft.listing("list ruleset"):
        rule = one.get("rule")
        if rule and rule.get("comment") == _mark(settings):
            lines.append("delete rule {} {} {} handle {}".format(*_place(rule), rule["handle"]))
    if lines:
        nft.run("\n".join(lines))
    return len(lines)


def overlapping_routes(settings: NetworkSettings) -> list[OverlappingRoute]:
    """Networks of this host (routes, and its interfaces' addresses) that overlap our range or 10.0.0.0/30. Default
    routes and our own are left out. Raises OSError."""
    with Netlink() as netlink:
        return find_overlaps(netlink.routes() + netlink.addresses(), dict(socket.if_nameindex()), settings)


def find_overlaps(
    routes: Sequence[Route], interfaces: dict[int, str], settings: NetworkSettings
) -> list[OverlappingRoute]:
    """Pure. `interfaces`: index -> name. A wider route (an office's 10.0.0.0/8) counts, too: ours would hide a part of
    it. The gateway address on a veth of another instance does not."""
    return [
        OverlappingRoute(route.destination, interfaces.get(route.interface, ""), ours)
        for route in dict.fromkeys(routes)
        if route.destination.prefixlen and route.destination != _SHARED
        if settings.slot_of(interfaces.get(route.interface, "")) is None
        for ours in (settings.address_range, INNER_NETWORK)
        if route.destination.overlaps(ours)
    ]
