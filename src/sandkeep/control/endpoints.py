"""The ways to the agents of running sandboxes that were asked for already: a call need not ask the node again."""

from contextlib import suppress
from dataclasses import dataclass

from sandkeep.contracts.guest import Guest
from sandkeep.domain.errors import SandkeepError
from sandkeep.domain.node import Endpoint


@dataclass(frozen=True)
class Reached:
    """A running sandbox and the way to its agent."""

    id: str
    endpoint: Endpoint


class Endpoints:
    """Kept by Sandboxes, which says when one is no longer true."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._reached: dict[tuple[str, str], Reached] = {}
        self._addresses: dict[str, str] = {}
        self.forgotten = 0

    def get(self, project_id: str, reference: str) -> Reached | None:
        return self._reached.get((project_id, reference))

    def put(self, project_id: str, reference: str, reached: Reached, forgotten: int) -> Reached:
        """`forgotten`: the count when the node was asked. If it has grown, this answer may be no longer true."""
        if forgotten == self.forgotten:
            self._reached[(project_id, reference)] = reached
        self._addresses[reached.id] = reached.endpoint.address
        return reached

    def forget(self, sandbox_id: str) -> None:
        self.forgotten += 1
        self._reached = {key: reached for key, reached in self._reached.items() if reached.id != sandbox_id}

    def forget_all(self) -> None:
        self.forgotten += 1
        self._reached = {}

    async def hang_up(self, sandbox_id: str) -> None:
        """Its machine is gone: calls that wait for its agent must hear of it, since a machine that was killed says
        nothing, and its connections would stay open for ever. (An address is not given again for ten minutes.)"""
        address = self._addresses.pop(sandbox_id, None)
        if address:
            with suppress(SandkeepError):
                await self._guest.hang_up(address)
