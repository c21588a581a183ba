"""What callers may ask for: how much of it is there, and how often."""

from dataclasses import dataclass
from math import ceil

from sandkeep.contracts.clock import Clock
from sandkeep.domain.errors import QuotaExceeded
from sandkeep.lib.buckets import Buckets
from sandkeep.store import sandboxes as store
from sandkeep.store.database import Transaction

_MINUTE = 60.0


@dataclass(frozen=True)
class Allowance:
    """sandboxes: of a project; creates: of a project per minute; requests: of a key per second; strangers: unknown keys
    per minute that one address may show. 0: no limit."""

    sandboxes: int = 0
    creates: int = 0
    requests: float = 0.0
    strangers: int = 30


class Quota:
    """Whether a project may have one more sandbox now."""

    def __init__(self, allowance: Allowance, clock: Clock) -> None:
        self._allowance = allowance
        self._clock = clock
        self._creates = Buckets(allowance.creates / _MINUTE, allowance.creates) if allowance.creates else None

    async def take(self, transaction: Transaction, project_id: str) -> None:
        """Counts one more. Raises QuotaExceeded."""
        most = self._allowance.sandboxes
        if most and (there := await store.count(transaction, project_id)) >= most:
            raise QuotaExceeded(
                f"the project has {there} sandboxes, and may have {most}",
                hint="delete some that are not needed, or raise max_sandboxes in the settings",
                retry_after=30,
                limit=most,
                used=there,
            )
        if self._creates and (wait := self._creates.take(project_id, self._clock.monotonic())):
            raise QuotaExceeded(
                f"the project may create {self._allowance.creates} sandboxes a minute",
                hint="wait, keep sandboxes and pause them instead, or raise max_creates in the settings",
                retry_after=ceil(wait),
                limit=self._allowance.creates,
            )
