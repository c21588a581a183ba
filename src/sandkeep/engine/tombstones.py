"""Tombstones: sandboxes whose deletion is acknowledged. What is left of them is erased until it is gone, and the tombstone
itself goes only when that survives a power cut: else a disk could come back of which no record tells that it was deleted.
"""

from dataclasses import replace

import anyio

from sandkeep.domain.errors import SandkeepError
from sandkeep.engine import lifecycle
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Record
from sandkeep.telemetry.log import log

_RETRY = 5.0
_TOGETHER = 0.5
"""Seconds in which erased ones are collected: one sync of the pool is for all of them."""


class Tombstones:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._erasing: set[str] = set()
        self._erased: set[str] = set()
        self._news = anyio.Event()

    async def try_erase(self, tombstone: Record) -> bool:
        """Whether nothing of it is left."""
        try:
            await lifecycle.erase(self._parts, tombstone)
        except Exception as error:
            log("undo.failed", what="erase", sandbox=tombstone.id, error=repr(error))
            return False
        # In memory alone: what it held is free again, and after a crash it is simply erased once more.
        self._parts.records.sandboxes[tombstone.id] = replace(tombstone, machine=None, slot=0, generation=None)
        self._erased.add(tombstone.id)
        self._news.set()
        return True

    async def erase(self, tombstone: Record) -> None:
        """Until it succeeds."""
        if tombstone.id in self._erasing:
            return
        self._erasing.add(tombstone.id)
        try:
            while not await self.try_erase(tombstone):
                await anyio.sleep(_RETRY)
        finally:
            self._erasing.discard(tombstone.id)

    async def run(self) -> None:
        """Until cancelled: bury what was erased."""
        while True:
            await self._news.wait()
            await anyio.sleep(_TOGETHER)
            self._news = anyio.Event()
            erased = set(self._erased)
            try:
                await self._parts.disks.sync()
                for sandbox_id in erased:
                    self._parts.records.resolve_unreadable(sandbox_id, forget=True)
                    for kept in self._parts.records.snapshots_of(sandbox_id):
                        self._parts.records.remove_snapshot(kept.snapshot.id)
                    self._parts.records.remove(sandbox_id)
                    self._erased.discard(sandbox_id)
            except (SandkeepError, OSError) as error:
                log("task.failed", "error", task="tombstones", error=str(error))
                await anyio.sleep(_RETRY)
                self._news.set()
