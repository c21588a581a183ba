"""Time comes in through here, so tests are exact."""

from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Wall clock: seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that only go forward, for deadlines."""
        ...

    async def sleep(self, seconds: float) -> None: ...
