"""Events: written in the transaction of the change they tell of, and passed on to followers once it is durable."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from sandkeep.contracts.clock import Clock
from sandkeep.domain.errors import InvalidArgument, Unavailable
from sandkeep.domain.event import Event, EventKind
from sandkeep.store import events as store
from sandkeep.store.database import Database, Transaction

_PAGE = 500


class Ledger:
    """One transaction with its events. `tell` inside it; followers hear when it was committed."""

    def __init__(self, transaction: Transaction, clock: Clock) -> None:
        self.transaction = transaction
        self._clock = clock
        self.told = 0

    async def tell(self, kind: EventKind, project_id: str, subject: str, reason: str = "", **data: Any) -> None:
        self.told += 1
        await store.add(
            self.transaction,
            project_id=project_id,
            at=self._clock.now(),
            kind=kind,
            subject=subject,
            reason=reason,
            data=data,
        )


class Events:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._news = anyio.Event()

    @asynccontextmanager
    async def change(self) -> AsyncIterator[Ledger]:
        """A transaction that tells events."""
        async with self._database.transaction() as transaction:
            ledger = Ledger(transaction, self._clock)
            yield ledger
        if ledger.told:
            self._news.set()
            self._news = anyio.Event()

    async def check(self) -> None:
        """Raises NoCapacity, StorageFailed, Unavailable when no event could be written now."""
        await self._database.check()

    @property
    def news(self) -> anyio.Event:
        """Set at the next event. Take it before looking."""
        return self._news

    async def page(self, project_id: str, *, after: int, limit: int, subject: str | None = None) -> list[Event]:
        async with self._database.transaction() as transaction:
            return await store.page(transaction, project_id, after=after, limit=limit, subject=subject)

    async def check_kept(self, after: int) -> None:
        """Raises InvalidArgument when a reader that saw the events up to `after` would miss some: they are not kept."""
        if not after:
            return
        async with self._database.transaction() as transaction:
            oldest = await store.oldest(transaction)
        if after < oldest - 1:
            raise InvalidArgument(
                f"events up to {oldest - 1} are not kept any more, and you had seen those up to {after}",
                hint=f"look at what is there now, then go on with after={oldest - 1}",
                field="after",
                oldest=oldest,
            )

    async def latest(self, subject: str, limit: int) -> list[Event]:
        """The last ones about it, oldest first."""
        async with self._database.transaction() as transaction:
            return await store.latest(transaction, subject, limit)

    async def follow(self, project_id: str, *, after: int, subject: str | None = None) -> AsyncIterator[Event | None]:
        """Events above `after` as they come; None about every 15 s of silence, and while the database is away."""
        while True:
            news = self._news
            try:
                found = await self.page(project_id, after=after, limit=_PAGE, subject=subject)
            except Unavailable:
                yield None
                await self._clock.sleep(1)
                continue
            for event in found:
                after = event.seq
                yield event
            if len(found) == _PAGE:
                continue
            with anyio.move_on_after(15) as scope:
                await news.wait()
            if scope.cancelled_caught:
                yield None
