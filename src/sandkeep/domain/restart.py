"""After a machine ended and nobody had asked for it: the rule its owner set, and how long to wait before the next try."""

from dataclasses import dataclass, replace
from enum import StrEnum

FORGOTTEN_AFTER = 600.0
"""Seconds of running after which earlier ends no longer count."""

LOOP = 5
"""So many ends in a row are a crash loop."""

LONGEST_WAIT = 300.0


class OnFailure(StrEnum):
    """restart: it starts again from its disk. stop: the next call starts it. leave: only its owner does."""

    RESTART = "restart"
    STOP = "stop"
    LEAVE = "leave"


@dataclass(frozen=True)
class Restarts:
    """failures: ends in a row, starts that failed among them. next_at: when the next try is planned, seconds since the
    epoch. machine: the number of the machine whose end was dealt with last."""

    failures: int = 0
    next_at: float | None = None
    machine: int = 0

    @property
    def looping(self) -> bool:
        return self.failures >= LOOP

    def planned(self, now: float) -> "Restarts":
        failures = self.failures + 1
        return replace(self, failures=failures, next_at=now + wait_before(failures))

    def forgotten(self) -> "Restarts":
        """Nothing is planned, and the next end is the first one."""
        return replace(self, failures=0, next_at=None)

    def wait(self, now: float) -> float:
        """Seconds until the planned try. Never more than the rule's own wait, whatever was done to the wall clock."""
        if self.next_at is None:
            return 0.0
        return min(max(0.0, self.next_at - now), wait_before(self.failures))


def wait_before(failures: int) -> float:
    """Seconds: 1, 2, 4 ... and never more than LONGEST_WAIT."""
    return min(2.0 ** min(max(0, failures - 1), 16), LONGEST_WAIT)
