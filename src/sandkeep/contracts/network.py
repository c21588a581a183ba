"""Networks: what the engine may ask for the connection of one sandbox."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sandkeep.domain.sandbox import NetworkMode


@dataclass(frozen=True)
class Attachment:
    """A sandbox's network on this node, all of it derived from its slot number.

    namespace: file that keeps the network namespace; address: the unique address on the host's side, to which the
    server dials; inner_address, gateway: the same for every sandbox."""

    sandbox_id: str
    slot: int
    namespace: Path
    interface: str
    address: str
    inner_address: str
    gateway: str
    dns: tuple[str, ...]
    mtu: int
    mode: NetworkMode


class Networks(Protocol):
    """Guarantees:

    * `attach` is idempotent by (sandbox_id, slot). When it returns, all rules are in place: no packet ever passes
      before the policy does, and nothing but the agent's port and what the policy allows ever passes.
    * With NetworkMode.NONE the host can still reach the agent; the sandbox reaches nothing, not even DNS.
    * `detach` is idempotent and complete; it resets the sandbox's open outside connections.
    * `block` refuses all traffic of a sandbox but the host's own (to and from the agent); `reset_tcp` additionally
      answers every TCP packet from inside by a reset (the first step of a memory checkpoint), including the host's.
    * `repair` brings back whatever base rules or per-sandbox rules are missing (somebody flushed the ruleset).
    """

    slots: int

    async def open(self) -> None:
        """Install the base rules of this instance. Idempotent; per-sandbox rules of live sandboxes stay."""
        ...

    async def close(self) -> None:
        """Remove every rule and object of this instance (purge)."""
        ...

    async def attach(self, sandbox_id: str, slot: int, mode: NetworkMode, *, blocked: bool = False) -> Attachment:
        """`blocked`: outside traffic stays refused until `unblock` (resume: before the agent finished its steps)."""
        ...

    def describe(self, sandbox_id: str, slot: int, mode: NetworkMode) -> Attachment:
        """What `attach` returned or would return; touches nothing."""
        ...

    async def refresh_inside(self, attachment: Attachment) -> None:
        """Put addresses and route back into the namespace (runsc takes them away at boot; a restore wants them)."""
        ...

    async def block(self, attachment: Attachment) -> None: ...

    async def unblock(self, attachment: Attachment) -> None:
        """Undo `block` and `reset_tcp`."""
        ...

    async def reset_tcp(self, attachment: Attachment) -> None: ...

    async def refuse_connecting(self, attachment: Attachment) -> int:
        """Answer each connection to the outside that still waits for its first answer, so that it ends: a memory
        checkpoint cannot hold it. Returns how many. A stack that checks what an ICMP error quotes goes on waiting."""
        ...

    async def detach(self, sandbox_id: str, slot: int) -> None: ...

    async def attached(self) -> dict[int, str]:
        """slot -> name of every network of this instance that the kernel knows now (namespaces, links, rules); the
        name is the sandbox id's body where it can be told, else ''."""
        ...

    async def missing(self, attachment: Attachment) -> str:
        """What of its policy the kernel does not hold now, '' for nothing: one look at this sandbox's own rules."""
        ...

    async def repair(self, attachments: list[Attachment]) -> int:
        """Returns how many things were missing."""
        ...
