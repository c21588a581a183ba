"""Every name and address of an instance's networks, derived from its prefix and a slot number. Pure."""

import re
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from sandkeep.domain.errors import InvalidArgument
from sandkeep.domain.ids import body

INNER = "10.0.0.2"
INNER_PREFIX = 30
GATEWAY = "10.0.0.1"
INNER_NETWORK = IPv4Network("10.0.0.0/30")
DEFAULT_RANGE = IPv4Network("10.210.0.0/16")
INNER_MAC = bytes.fromhex("020000000002")
HOST_MAC = bytes.fromhex("020000000001")
"""The same for every sandbox, so that a memory image finds in every network what it was saved with."""

REFUSED = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/3",
)
"""What no policy may open: RFC 6890's special ranges with multicast, class E and broadcast (224/3), the metadata
services (169.254.169.254; Azure's 168.63.129.16 is a public address). The TEST-NETs go nowhere and stay open."""

_PREFIX = re.compile(r"[a-z][a-uw-z0-9]{0,7}")
_NAMESPACE = re.compile(r"([1-9][0-9]*)-([a-z0-9]{20})")
_NAME_LIMIT = 15


@dataclass(frozen=True)
class NetworkSettings:
    """prefix: the instance's; every interface is `<prefix>v<slot>`, every nft table `<prefix>_...`. The letter v may
    only be its first, so that no instance's `<prefix>v*` matches another's interfaces.
    run_folder: holds netns/ and the resolver's record. address_range: one address per slot, base + slot.
    dns_port: where the resolver listens on the gateway address; two instances share that address, so it differs.
    also_refused: further ranges that no sandbox may reach, for example the operator's public addresses."""

    prefix: str
    run_folder: Path
    address_range: IPv4Network = DEFAULT_RANGE
    dns_port: int = 5300
    also_refused: tuple[IPv4Network, ...] = ()

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise InvalidArgument(
                f"the instance prefix {self.prefix!r} cannot name network interfaces",
                hint="use up to 8 lower-case letters and digits, a letter first, and no v after it",
                field="prefix",
            )
        if self.address_range.num_addresses < 4 or self.address_range.overlaps(INNER_NETWORK):
            raise InvalidArgument(
                f"the address range {self.address_range} is too small or overlaps {INNER_NETWORK}",
                hint="give at least a /30 of private addresses that the host does not use, such as 10.210.0.0/16",
                field="address_range",
            )

    @property
    def slots(self) -> int:
        """Slot numbers are 1..slots: as many as there are addresses, and names that the kernel accepts."""
        digits = _NAME_LIMIT - len(self.prefix) - 1
        return min(self.address_range.num_addresses - 2, int("9" * digits))

    @property
    def guard_table(self) -> str:
        return f"{self.prefix}_guard"

    @property
    def link_table(self) -> str:
        return f"{self.prefix}_link"

    @property
    def all_interfaces(self) -> str:
        """The pattern that matches our interfaces and no other's."""
        return f"{self.prefix}v*"

    @property
    def namespaces(self) -> Path:
        return self.run_folder / "netns"

    @cached_property
    def _interface_pattern(self) -> re.Pattern[str]:
        return re.compile(rf"{self.prefix}v([1-9][0-9]*)")

    def interface(self, slot: int) -> str:
        return f"{self.prefix}v{slot}"

    def slot_of(self, interface: str) -> int | None:
        found = self._interface_pattern.fullmatch(interface)
        return int(found[1]) if found else None

    def address(self, slot: int) -> str:
        return str(IPv4Address(int(self.address_range.network_address) + slot))

    def namespace(self, sandbox_id: str, slot: int) -> Path:
        return self.namespaces / f"{slot}-{body(sandbox_id)}"

    def check_slot(self, slot: int) -> None:
        if not 1 <= slot <= self.slots:
            raise InvalidArgument(f"slot {slot} is not between 1 and {self.slots}", field="slot")


def parse_namespace(name: str) -> tuple[int, str] | None:
    """`<slot>-<body of the sandbox id>` -> both; None for any other file name."""
    found = _NAMESPACE.fullmatch(name)
    return (int(found[1]), found[2]) if found else None
