"""How large snapshots are: computed in the background, one sandbox after the other, and told with the time of it."""

import anyio

from sandkeep.contracts.disks import GenerationSizes
from sandkeep.domain.errors import SandkeepError
from sandkeep.domain.sandbox import Phase
from sandkeep.domain.timeline import Share, SnapshotSize, SnapshotSizes
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Kept
from sandkeep.telemetry.log import log

_LOOK_EVERY = 2.0
_AGAIN_AFTER = 600.0
"""Seconds: a snapshot that stays as it is holds more alone the more the disk goes on from it."""


class Sizes:
    """What is known is kept in memory: after a restart it is computed anew."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._known: dict[str, SnapshotSizes] = {}
        self._measured: dict[str, tuple[tuple[str, ...], float]] = {}
        self._turn = anyio.Lock()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._parts.clock.sleep(_LOOK_EVERY)
            for sandbox_id in self._stale():
                try:
                    await self.measure(sandbox_id)
                except SandkeepError as error:
                    self._measured[sandbox_id] = (_ids(self._kept(sandbox_id)), self._parts.clock.monotonic())
                    log("task.failed", "warning", task="snapshot.sizes", sandbox=sandbox_id, error=error.message)

    def known(self, sandbox_id: str) -> SnapshotSizes | None:
        return self._known.get(sandbox_id)

    async def measure(self, sandbox_id: str) -> SnapshotSizes:
        """Now. Raises NotFound when one of them goes meanwhile."""
        async with self._turn:
            kept = self._kept(sandbox_id)
            found = await self._parts.disks.measure(sandbox_id, self._asked(sandbox_id, kept))
            sizes = self._known[sandbox_id] = _of_snapshots(kept, found, self._parts.clock.now())
            self._measured[sandbox_id] = (_ids(kept), self._parts.clock.monotonic())
            return sizes

    def _kept(self, sandbox_id: str) -> list[Kept]:
        found = [one for one in self._parts.records.snapshots_of(sandbox_id) if one.here]
        return sorted(found, key=lambda one: (one.snapshot.created_at, one.id))

    def _asked(self, sandbox_id: str, kept: list[Kept]) -> list[tuple[str, str | None]]:
        """Each generation once, but not those that the sandbox itself needs: they stay whatever is deleted."""
        record = self._parts.records.sandboxes.get(sandbox_id)
        own = {one.id for one in (record.generation, record.point) if one} if record else set()
        generation = {one.id: one.generation.id for one in kept}
        asked: dict[str, str | None] = {}
        for one in kept:
            if one.generation.id not in own:
                asked.setdefault(one.generation.id, generation.get(one.snapshot.parent or ""))
        return list(asked.items())

    def _stale(self) -> list[str]:
        """Those whose snapshots are others than the measured ones, and what was measured long ago."""
        now = self._parts.clock.monotonic()
        owners: dict[str, list[Kept]] = {}
        for one in self._parts.records.snapshots.values():
            if not one.here:
                continue
            owners.setdefault(one.snapshot.sandbox_id, []).append(one)
        self._known = {key: sizes for key, sizes in self._known.items() if key in owners}
        self._measured = {key: what for key, what in self._measured.items() if key in owners}
        found = []
        for sandbox_id in owners:
            record = self._parts.records.sandboxes.get(sandbox_id)
            if record is None or record.phase is Phase.DELETED:
                continue
            ids, at = self._measured.get(sandbox_id, ((), 0.0))
            if ids != _ids(self._kept(sandbox_id)) or now - at >= _AGAIN_AFTER:
                found.append(sandbox_id)
        return found


def _of_snapshots(kept: list[Kept], found: GenerationSizes, at: float) -> SnapshotSizes:
    """Several of them may hold one generation, whose memory files count, too."""
    holders: dict[str, list[str]] = {}
    for one in kept:
        holders.setdefault(one.generation.id, []).append(one.id)
    sizes, shares = dict[str, SnapshotSize](), list[Share]()
    for one in kept:
        generation, memory = one.generation.id, _memory(one)
        size = found.sizes.get(generation)
        if size is None:
            sizes[one.id] = SnapshotSize(None, 0)
            continue
        alone = len(holders[generation]) == 1
        freed = size.freed if size.freed is None or alone else 0
        written = None if size.written is None else size.written + memory
        sizes[one.id] = SnapshotSize(written, freed + memory if freed is not None and alone else freed)
        if memory and holders[generation][0] == one.id:
            shares.append(Share(one.id, holders[generation][-1], memory))
    shares += [Share(holders[first][0], holders[last][-1], size) for first, last, size in found.shares]
    return SnapshotSizes(at, sizes, tuple(shares))


def _memory(kept: Kept) -> int:
    """Bytes: a checksum begins with them."""
    return sum(int(checksum.partition(":")[0]) for checksum in kept.generation.files.values())


def _ids(kept: list[Kept]) -> tuple[str, ...]:
    return tuple(one.id for one in kept)
