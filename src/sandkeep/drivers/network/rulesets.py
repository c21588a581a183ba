"""Every nft text that an instance's networks need, made by pure functions.

From inside to outside:  <prefix>_link in<slot> (anti-spoofing, 10.0.0.2 -> unique address) -> prerouting (port 53 ->
our resolver) -> early_* (blocked, resetting) -> input or forward (policy) -> masquerade. Back: conntrack -> policy ->
<prefix>_link out<slot> (unique address -> 10.0.0.2).

* Base chains match only `<prefix>v*` and our own address range; everything else falls through untouched.
* What is not decided is refused: TCP by a reset, all else by silence. The translation rewrites only the outer header,
  so a stack inside ignores ICMP errors, which quote the unique address. For the same reason MTU discovery does not
  reach inside: the MSS is clamped.
* So is what the host itself has no route for, before routing drops it without a word that the stack inside would take:
  a connection that waits for an answer cannot be saved with the memory.
* What conntrack calls invalid would leave with the unique address as its source, since NAT passes it by: dropped.
* The refused ranges come before `ct state established`: tightening them cuts open flows, too.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, collapse_addresses

from sandkeep.domain.sandbox import NetworkMode
from sandkeep.drivers.network.layout import GATEWAY, INNER, REFUSED, NetworkSettings

TO_OUTSIDE, TO_HOST, BLOCKED, RESETTING = "to_outside", "to_host", "blocked", "resetting"
"""Maps `interface : verdict` (the policy in forward, and in input) and sets of interfaces."""

_VERDICTS = {TO_OUTSIDE: "goto internet", TO_HOST: "goto names"}
_MODES = {NetworkMode.INTERNET: frozenset({TO_OUTSIDE, TO_HOST}), NetworkMode.NONE: frozenset[str]()}
_IN, _OUT = "in", "out"
CHAINS = frozenset({_IN, _OUT})


def expected(mode: NetworkMode) -> frozenset[str]:
    """What a sandbox of this mode has in the kernel: its two link chains and its places in the policy maps."""
    return CHAINS | _MODES[mode]


def base(settings: NetworkSettings) -> str:
    """The tables of an instance, empty of sandboxes, for a kernel that has neither. The chain `version_...` holds
    nothing: its name says which text made the table."""
    body = _guard(settings)
    return (
        f"table netdev {settings.link_table} {{ }}\n"
        f"table inet {settings.guard_table} {{\n\tchain {_version(body)} {{ }}\n{body}}}\n"
    )


def base_version(settings: NetworkSettings) -> str:
    return _version(_guard(settings))


def _version(body: str) -> str:
    return "version_" + hashlib.sha256(body.encode()).hexdigest()[:16]


def _guard(settings: NetworkSettings) -> str:
    ours = f'"{settings.all_interfaces}"'
    ranges = (*map(IPv4Network, REFUSED), *settings.also_refused, settings.address_range)
    refused = ", ".join(str(one) for one in collapse_addresses(ranges))
    return f"""\
	map {TO_OUTSIDE} {{ type ifname : verdict; }}
	map {TO_HOST} {{ type ifname : verdict; }}
	set {BLOCKED} {{ type ifname; }}
	set {RESETTING} {{ type ifname; }}
	set refused {{ type ipv4_addr; flags interval; elements = {{ {refused} }}; }}

	chain refuse {{
		meta l4proto tcp counter reject with tcp reset
		counter drop
	}}
	chain internet {{
		meta l4proto {{ tcp, udp, icmp }} accept
		goto refuse
	}}
	chain names {{
		ip daddr {GATEWAY} meta l4proto {{ tcp, udp }} th dport {settings.dns_port} ct original proto-dst 53 accept
		goto refuse
	}}

	chain resolver {{ type nat hook prerouting priority dstnat;
		iifname {ours} ip daddr {GATEWAY} meta l4proto {{ tcp, udp }} th dport 53 redirect to :{settings.dns_port}
	}}
	chain departed {{ type filter hook prerouting priority filter;
		ip daddr {settings.address_range} fib daddr oif missing meta l4proto tcp reject with tcp reset
		iifname {ours} fib daddr type != local fib daddr oif missing meta l4proto tcp counter reject with tcp reset
	}}

	chain early_input {{ type filter hook input priority filter - 10;
		iifname @{RESETTING} tcp flags & rst == rst accept
		iifname @{RESETTING} goto refuse
		iifname @{BLOCKED} ct direction original goto refuse
	}}
	chain early_output {{ type filter hook output priority filter - 10;
		oifname @{RESETTING} meta l4proto tcp ct state new reject with tcp reset
	}}
	chain early_forward {{ type filter hook forward priority filter - 10;
		iifname @{BLOCKED} goto refuse
		oifname @{BLOCKED} goto refuse
	}}

	chain input {{ type filter hook input priority filter;
		iifname {ours} goto from_inside_to_host
	}}
	chain from_inside_to_host {{
		ct direction reply ct state established accept
		iifname vmap @{TO_HOST}
		goto refuse
	}}

	chain forward {{ type filter hook forward priority filter;
		iifname {ours} goto from_inside
		oifname {ours} goto to_inside
	}}
	chain from_inside {{
		ip daddr @refused goto refuse
		oifname {ours} goto refuse
		meta l4proto {{ tcp, udp }} th dport 53 goto refuse
		ct state invalid counter drop
		tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
		iifname vmap @{TO_OUTSIDE}
		goto refuse
	}}
	chain to_inside {{
		tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
		ct direction reply ct state established,related accept
		goto refuse
	}}

	chain leave {{ type nat hook postrouting priority srcnat;
		iifname {ours} oifname != {ours} masquerade
	}}
"""


def install(settings: NetworkSettings, kept: "Kernel", *, present: bool) -> str:
    """One transaction that brings the guard table to today's text and puts back what it held (`kept`)."""
    lines = [f"delete table inet {settings.guard_table}"] if present else []
    lines.append(base(settings))
    for slot in sorted(kept.slots):
        lines += _elements("add", settings, slot, kept.slots[slot] - CHAINS)
    return "\n".join(lines)


def _chain(settings: NetworkSettings, slot: int, name: str) -> str:
    hook = "ingress" if name == _IN else "egress"
    where = f"netdev {settings.link_table} {name}{slot}"
    lines = [
        f'add chain {where} {{ type filter hook {hook} device "{settings.interface(slot)}" priority 0; }}',
        f"flush chain {where}",
    ]
    unique = settings.address(slot)
    if name == _IN:
        # ARP only as the inside's own address for the gateway, and translated, too: the host's strict rp_filter wants
        # a source that it has a route to, and nobody fills its neighbour table.
        rules = [
            f"arp saddr ip {INNER} arp daddr ip {GATEWAY} arp saddr ip set {unique} accept",
            "meta protocol != ip counter drop",
            f"ip saddr != {INNER} counter drop",
            f"ip saddr set {unique}",
        ]
    else:
        rules = [
            f"arp daddr ip {unique} arp daddr ip set {INNER}",
            "meta protocol != { ip, arp } drop",
            f"ip daddr {unique} ip daddr set {INNER}",
        ]
    return "\n".join([*lines, *(f"add rule {where} {rule}" for rule in rules)])


def _elements(verb: str, settings: NetworkSettings, slot: int, names: Iterable[str]) -> list[str]:
    lines = []
    for name in sorted(names):
        verdict = f" : {_VERDICTS[name]}" if name in _VERDICTS else ""
        interface = settings.interface(slot)
        lines.append(f'{verb} element inet {settings.guard_table} {name} {{ "{interface}"{verdict} }}')
    return lines


def add(settings: NetworkSettings, slot: int, names: Iterable[str]) -> str:
    """Chains and elements of a sandbox. Idempotent: chains are filled anew in the same transaction."""
    wanted = frozenset(names)
    chains = [_chain(settings, slot, name) for name in sorted(wanted & CHAINS)]
    return "\n".join([*chains, *_elements("add", settings, slot, wanted - CHAINS)])


def remove(settings: NetworkSettings, slot: int, names: Iterable[str]) -> str:
    """Deletes exactly these, which must all exist. Elements first: a chain without them lets nothing pass."""
    wanted = frozenset(names)
    lines = _elements("delete", settings, slot, wanted - CHAINS)
    for name in sorted(wanted & CHAINS):
        where = f"netdev {settings.link_table} {name}{slot}"
        lines += [f"flush chain {where}", f"delete chain {where}"]
    return "\n".join(lines)


def link_chains(settings: NetworkSettings, slot: int) -> list[str]:
    """What lists a sandbox's own chains, one by one, and fails when one is not there."""
    return [f"list chain netdev {settings.link_table} {name}{slot}" for name in sorted(CHAINS)]


def are_whole(chains: str) -> bool:
    """Whether the listings of a sandbox's chains have all of their rules."""
    return _count_rules(chains) == sum(_LINK_RULES.values())


@dataclass(frozen=True)
class Kernel:
    """What the kernel holds of an instance. version: the base's; '' for a table whose rules are not all there, None
    for no table. slots: slot -> names of its chains and elements. hollow: chains without their rules."""

    version: str | None
    link_table: bool
    slots: dict[int, frozenset[str]]
    hollow: frozenset[tuple[int, str]] = frozenset()


_LINK_CHAIN = re.compile(rf"\tchain ({_IN}|{_OUT})([1-9][0-9]*) \{{")
_HOLDER = re.compile(r"\t(map|set|chain) (\w+) \{")
_QUOTED = re.compile(r'"([^"]+)"')
_RULE = re.compile(r"\t\t(?!type |flags |elements )[a-z]")
_LINK_RULES = {_IN: 4, _OUT: 3}


def _count_rules(text: str) -> int:
    return sum(1 for line in text.splitlines() if _RULE.match(line))


def parse(settings: NetworkSettings, guard: str | None, link: str | None) -> Kernel:
    """The listings of both tables (None: no such table) as nft prints them -> what is there."""
    slots: dict[int, set[str]] = {}
    version = None if guard is None else _parse_guard(settings, guard, slots)
    hollow: set[tuple[int, str]] = set()
    chain: tuple[int, str] | None = None
    rules = 0
    for line in (link or "").splitlines():
        if found := _LINK_CHAIN.match(line):
            chain, rules = (int(found[2]), found[1]), 0
            slots.setdefault(chain[0], set()).add(chain[1])
        elif chain and line == "\t}":
            if rules != _LINK_RULES[chain[1]]:
                hollow.add(chain)
            chain = None
        elif _RULE.match(line):
            rules += 1
    kept = {slot: frozenset(names) for slot, names in slots.items()}
    return Kernel(version, link is not None, kept, frozenset(hollow))


def _parse_guard(settings: NetworkSettings, text: str, slots: dict[int, set[str]]) -> str:
    version, holder = "", ""
    for line in text.splitlines():
        if found := _HOLDER.match(line):
            holder = found[2]
            if holder.startswith("version_"):
                version = holder
        elif holder in (TO_OUTSIDE, TO_HOST, BLOCKED, RESETTING):
            for interface in _QUOTED.findall(line):
                slot = settings.slot_of(interface)
                if slot is not None:
                    slots.setdefault(slot, set()).add(holder)
    return version if _count_rules(text) == _count_rules(_guard(settings)) else ""
