"""Networks in memory: names, addresses and states as the real driver has them, and no packet anywhere."""

from dataclasses import dataclass
from pathlib import Path

from sandkeep.contracts.network import Attachment
from sandkeep.domain.errors import Conflict, InvalidArgument
from sandkeep.domain.ids import body
from sandkeep.domain.sandbox import NetworkMode

_GATEWAY, _INNER = "10.0.0.1", "10.0.0.2"


@dataclass
class FakeNetwork:
    attachment: Attachment
    blocked: bool = False
    resetting: bool = False
    refreshed: int = 0
    connecting: int = 0


class FakeNetworks:
    """Fulfils contracts.network.Networks. `address`: what every attachment gets instead of an unreachable one, for a
    fake guest that listens there; None for 10.210.x.y. `networks` is the kernel, for tests to read and to damage: a
    slot taken out of `ruled` has lost its rules until `repair`."""

    def __init__(self, run_folder: Path, *, slots: int = 65534, address: str | None = None) -> None:
        self.slots = slots
        self.networks: dict[int, FakeNetwork] = {}
        self.ruled: set[int] = set()
        self.is_open = False
        self._run_folder = run_folder
        self._address = address

    async def open(self) -> None:
        self.is_open = True

    async def close(self) -> None:
        self.networks.clear()
        self.ruled.clear()
        self.is_open = False

    def describe(self, sandbox_id: str, slot: int, mode: NetworkMode) -> Attachment:
        return Attachment(
            sandbox_id=sandbox_id,
            slot=slot,
            namespace=self._run_folder / "netns" / f"{slot}-{body(sandbox_id)}",
            interface=f"fakev{slot}",
            address=self._address or f"10.210.{slot >> 8}.{slot & 255}",
            inner_address=_INNER,
            gateway=_GATEWAY,
            dns=(_GATEWAY,) if mode is NetworkMode.INTERNET else (),
            mtu=1500,
            mode=mode,
        )

    async def attach(self, sandbox_id: str, slot: int, mode: NetworkMode, *, blocked: bool = False) -> Attachment:
        if not 1 <= slot <= self.slots:
            raise InvalidArgument(f"slot {slot} is not between 1 and {self.slots}", field="slot")
        attachment, there = self.describe(sandbox_id, slot, mode), self.networks.get(slot)
        if there is not None and there.attachment.sandbox_id != sandbox_id:
            raise Conflict(f"slot {slot} is the network of another sandbox", slot=slot)
        if there is None:
            there = self.networks[slot] = FakeNetwork(attachment)
        there.attachment = attachment
        there.blocked = there.blocked or blocked
        self.ruled.add(slot)
        return attachment

    async def refresh_inside(self, attachment: Attachment) -> None:
        self.networks[attachment.slot].refreshed += 1

    async def block(self, attachment: Attachment) -> None:
        there = self.networks[attachment.slot]
        there.blocked, there.resetting = True, False

    async def unblock(self, attachment: Attachment) -> None:
        there = self.networks[attachment.slot]
        there.blocked = there.resetting = False

    async def reset_tcp(self, attachment: Attachment) -> None:
        there = self.networks[attachment.slot]
        there.blocked = there.resetting = True

    async def refuse_connecting(self, attachment: Attachment) -> int:
        there = self.networks[attachment.slot]
        refused, there.connecting = there.connecting, 0
        return refused

    async def detach(self, sandbox_id: str, slot: int) -> None:
        there = self.networks.get(slot)
        if there is not None and there.attachment.sandbox_id == sandbox_id:
            del self.networks[slot]
            self.ruled.discard(slot)

    async def attached(self) -> dict[int, str]:
        return {slot: body(there.attachment.sandbox_id) for slot, there in self.networks.items()}

    async def missing(self, attachment: Attachment) -> str:
        return "" if attachment.slot in self.ruled else "its rules"

    async def repair(self, attachments: list[Attachment]) -> int:
        missing = {one.slot for one in attachments if one.slot in self.networks} - self.ruled
        self.ruled |= missing
        return len(missing)
