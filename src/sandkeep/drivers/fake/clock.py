"""A clock that goes as the host's does until a test turns it."""

import time

import anyio


class FakeClock:
    """`advance` lets time pass: both clocks go on, and who sleeps wakes. `jump` sets the wall clock alone, as a person or
    a time server does."""

    def __init__(self) -> None:
        self._passed = 0.0
        self._set_off = 0.0
        self._turned = anyio.Event()

    def now(self) -> float:
        return time.time() + self._passed + self._set_off

    def monotonic(self) -> float:
        return time.monotonic() + self._passed

    async def sleep(self, seconds: float) -> None:
        end = self.monotonic() + seconds
        while (left := end - self.monotonic()) > 0:
            turned = self._turned
            with anyio.move_on_after(left):
                await turned.wait()

    def advance(self, seconds: float) -> None:
        self._passed += seconds
        self._turned.set()
        self._turned = anyio.Event()

    def jump(self, seconds: float) -> None:
        self._set_off += seconds
