"""Slot numbers: leased to sandboxes that have a machine; address, link name and MAC derive from them.

A number is not used again within ten minutes of its release, so that nobody's late packets or cached names reach a
stranger. The times live in the run folder: after a reboot nothing of the old network exists.
"""

import contextlib
import json
from pathlib import Path

from sandkeep.contracts.clock import Clock
from sandkeep.domain.errors import NoCapacity

REST = 600.0


class Slots:
    def __init__(self, path: Path, total: int, clock: Clock) -> None:
        self._path = path
        self.total = total
        self._clock = clock
        self._used: set[int] = set()
        self._released: dict[int, float] = {}
        self._next = 1

    def open(self, used: set[int]) -> None:
        self._used = set(used)
        try:
            saved = json.loads(self._path.read_bytes())
            self._released = {int(slot): float(at) for slot, at in saved["released"].items()}
            self._next = int(saved["next"])
        except (OSError, ValueError, KeyError, AttributeError):
            self._next = max(used, default=0) + 1

    @property
    def free(self) -> int:
        return self.total - len(self._used)

    def is_leased(self, slot: int) -> bool:
        return slot in self._used

    def lease(self) -> int:
        """Raises NoCapacity."""
        now = self._clock.now()
        for step in range(self.total):
            slot = (self._next - 1 + step) % self.total + 1
            # A clock that jumped back must not keep a slot for ever: only the recent past counts.
            if slot in self._used or 0 <= now - self._released.get(slot, -REST) < REST:
                continue
            self._used.add(slot)
            self._released.pop(slot, None)
            self._next = slot % self.total + 1
            self._save()
            return slot
        raise NoCapacity(
            "no network address is free on this node",
            hint="addresses rest for ten minutes after use; wait, or give the instance a larger address range",
            retry_after=60,
            slots_total=self.total,
        )

    def release(self, slot: int) -> None:
        if slot in self._used:
            self._used.discard(slot)
            self._released[slot] = self._clock.now()
            self._save()

    def _save(self) -> None:
        now = self._clock.now()
        self._released = {s: at for s, at in self._released.items() if 0 <= now - at < REST}
        fresh = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):  # a full run folder: only a restart in the next ten minutes would miss it
            fresh.write_text(json.dumps({"next": self._next, "released": self._released}))
            fresh.rename(self._path)
