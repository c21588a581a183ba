"""What is being read out of disks: so many at once, none for ever, and none of a disk that is no longer there.

An open file keeps a deleted subvolume's room. So each reading ends by itself when what it reads was deleted or replaced,
when nobody takes its bytes, or when it has taken very long; whoever takes the next bytes is told why.
"""

import os
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Protocol

import anyio
import anyio.lowlevel
from anyio.to_thread import run_sync

from sandkeep.contracts.clock import Clock
from sandkeep.domain.errors import Busy, DeadlineExceeded, Internal, NotFound, SandkeepError

_MOST = 32
_AT_ONCE = 4
"""Threads: a guest's huge folder must not keep the others from their disks."""
_LOOK_EVERY = 1.0
_IDLE = 120.0
_LONGEST = 6 * 3600.0

Identity = tuple[int, int]


class Chunks(Iterator[bytes], Protocol):
    def close(self) -> None:
        """May be called again."""
        ...


class _Reading:
    def __init__(self, root: Path, chunks: Chunks, now: float) -> None:
        self.root = root
        self.chunks = chunks
        self.begun = self.taken = now
        self.identity = identity(root)
        self.at_work = False
        self.why: SandkeepError | None = None


class Readings:
    """Kept by Browser; `run` it as long as the node serves."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: set[_Reading] = set()
        self.threads = anyio.CapacityLimiter(_AT_ONCE)

    def __len__(self) -> int:
        return len(self._open)

    async def stream(self, root: Path, chunks: Chunks) -> AsyncGenerator[bytes, None]:
        """What is read below this root, each chunk in a thread; closed at the end. Raises Busy, NotFound,
        DeadlineExceeded."""
        if len(self._open) >= _MOST:
            chunks.close()
            raise Busy(f"{_MOST} files and folders are being read on this node", hint="try again", retry_after=1)
        reading = _Reading(root, chunks, self._clock.monotonic())
        self._open.add(reading)
        try:
            while (chunk := await self._next(reading)) is not None:
                yield chunk
        finally:
            self._open.discard(reading)
            reading.chunks.close()

    async def _next(self, reading: _Reading) -> bytes | None:
        await anyio.lowlevel.checkpoint()  # where whoever reads may be cancelled; what follows is shielded
        if reading.why is None:
            reading.at_work = True
            try:
                # Shielded: the thread goes on to its end in any case, and the generator may be closed only then.
                with anyio.CancelScope(shield=True):
                    chunk = await run_sync(next, reading.chunks, None, limiter=self.threads)
            except OSError as error:
                raise Internal(f"what is read cannot be read any further: {error.strerror}") from error
            finally:
                reading.at_work = False
                reading.taken = self._clock.monotonic()
            if reading.why is None:
                return chunk
        raise reading.why

    async def run(self) -> None:
        while True:
            await anyio.sleep(_LOOK_EVERY)
            if self._open:
                await self.look()

    async def look(self) -> None:
        """End what must not go on."""
        now, readings = self._clock.monotonic(), list(self._open)
        there = await run_sync(lambda: [identity(reading.root) for reading in readings])
        for reading, found in zip(readings, there, strict=True):
            if found != reading.identity:
                reading.why = NotFound("what is read was deleted or replaced meanwhile", hint="read what is there now")
            elif now - reading.begun > _LONGEST or (not reading.at_work and now - reading.taken > _IDLE):
                reading.why = DeadlineExceeded("nobody took what was read, or it took too long")
            if reading.why is not None and not reading.at_work:
                reading.chunks.close()


def identity(root: Path) -> Identity | None:
    """Of what has this path now: another one after a rollback, None after a delete."""
    try:
        found = os.lstat(root)
    except OSError:
        return None
    return found.st_dev, found.st_ino
