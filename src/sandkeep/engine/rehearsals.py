"""Rehearsals: an archive is restored into a scratch place, compared with its manifest, and thrown away. Nothing else is touched.

The scratch place is one that nobody finishes: what a crash leaves of it goes with the next start of the node.
"""

from contextlib import suppress
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from sandkeep.domain.archive import Rehearsed
from sandkeep.domain.errors import Conflict, SandkeepError
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.quantities import format_size
from sandkeep.engine import snapshots
from sandkeep.engine.admission import admit_disk
from sandkeep.engine.archive.worker import Folders
from sandkeep.engine.archived_snapshots import chain_of
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Archived, Record


class Rehearsals:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._turn = anyio.Lock()

    async def rehearse(self, record: Record, snapshot_id: str | None) -> Rehearsed:
        """Raises Conflict when there is no archive of it, or another since; NoCapacity, Unavailable: then nothing is known."""
        async with self._turn:
            archived = self._archived(record.id, snapshot_id)
            parts, began = self._parts, self._parts.clock.monotonic()
            admit_disk(await parts.capacity(), parts.settings.rules, archived.size)
            scratch = new_id(IdKind.TEMPLATE)
            chain = chain_of(archived, snapshot_id or "")
            intact, reason = True, f"restored and compared: {format_size(archived.size)}"
            try:
                folders = await run_sync(_folders, await parts.disks.begin_template(scratch))
                await parts.vault.rehearse(record.id, record.sandbox.project_id, chain, folders)
            except Conflict as error:
                if self._archived(record.id, snapshot_id).hash != archived.hash:
                    raise Conflict("it was archived again or deleted meanwhile", hint="try it again") from error
                intact, reason = False, error.message
            finally:
                with anyio.CancelScope(shield=True), suppress(SandkeepError):
                    await parts.disks.delete_template(scratch)
            return Rehearsed(intact, reason, archived.size, parts.clock.monotonic() - began)

    def _archived(self, sandbox_id: str, snapshot_id: str | None) -> Archived:
        """Raises Conflict, NotFound."""
        if snapshot_id:
            found = snapshots.find(self._parts, sandbox_id, snapshot_id).archive
        else:
            record = self._parts.records.sandboxes.get(sandbox_id)
            found = record.archive if record else None
        if found is None or not found.sequence:
            raise Conflict("there is no archive of it", hint="sandkeep archive makes one")
        return found


def _folders(root: Path) -> Folders:
    disk, memory = root / "disk", root / "memory"
    disk.mkdir(0o755)
    memory.mkdir(0o700)
    return Folders(disk, memory)
