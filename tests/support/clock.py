"""Time that stands still until a test moves it."""

import anyio


class StillClock:
    """Fulfils contracts.clock.Clock. `time`: seconds, of both clocks."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(0)
