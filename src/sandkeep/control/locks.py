"""One change at a time: a lock per sandbox, or per name under which one is made. Kept by control.sandboxes."""

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio


class Locks(defaultdict[str, anyio.Lock]):
    def __init__(self) -> None:
        super().__init__(anyio.Lock)

    @asynccontextmanager
    async def creating(self, key: str) -> AsyncIterator[None]:
        """Creates of one name (or one idempotency key) come one after the other."""
        lock = self[key]
        async with lock:
            try:
                yield
            finally:
                if not lock.statistics().tasks_waiting:
                    self.pop(key, None)
