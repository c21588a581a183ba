"""Snapshots on the node: a generation that stays until somebody deletes it, the way back to it, and its end.

The generation is made first and the record of the snapshot last; what a crash leaves without one is dropped by recovery.
"""

from contextlib import nullcontext
from dataclasses import replace

from sandkeep.domain.errors import NotFound, SandkeepError
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import SnapshotOnNode
from sandkeep.domain.sandbox import ConditionKind, Phase
from sandkeep.engine import lifecycle, machine
from sandkeep.engine.journal import Entry
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Generation, Kept, Record
from sandkeep.engine.undo import Undos


def find(parts: Parts, sandbox_id: str, snapshot_id: str) -> Kept:
    """Raises NotFound."""
    kept = parts.records.snapshots.get(snapshot_id)
    if kept is None or kept.snapshot.sandbox_id != sandbox_id:
        raise NotFound(f"snapshot {snapshot_id} of {sandbox_id} is not on this node")
    return kept


async def make(parts: Parts, record: Record, wanted: SnapshotOnNode, entry: Entry, undos: Undos) -> Record:
    """Of its disk as it is now; a child of what that came from. Running processes stand still only where the disk driver
    cannot keep one instant."""
    after = replace(record, head=wanted.id)
    if wanted.id in parts.records.snapshots:  # a crash came between its record and the sandbox's
        return after
    generation = new_id(IdKind.GENERATION)
    running = record.phase is Phase.RUNNING
    if running:
        entry.step("guest.flush")
        await machine.flush(parts, record)
    entry.step("generation.begin", generation=generation)
    undos.push("generation", lambda: parts.disks.drop_generation(record.id, generation))
    entry.step("disk.snapshot")
    held = 0.0
    if running and not parts.disks.capabilities.atomic:
        held = await _snapshot_frozen(parts, record, generation, undos)
    else:
        await parts.disks.snapshot(record.id, generation)
    entry.step("disk.sync")
    await parts.disks.sync()
    entry.step("snapshot.record")

    async def forget() -> None:
        parts.records.remove_snapshot(wanted.id)

    undos.push("snapshot", forget)
    made = replace(wanted, held=held, parent=record.head or None)
    parts.records.save_snapshot(Kept(made, Generation(generation, parts.clock.now(), files={}, requires={})))
    return after


async def _snapshot_frozen(parts: Parts, record: Record, generation: str, undos: Undos) -> float:
    """Seconds that it took. After a crash recovery thaws what runs by its record."""
    runtime, machine_id = parts.runtime(record.spec.runtime), record.machine or ""
    began = parts.clock.monotonic()
    undos.push("thaw", lambda: runtime.thaw(machine_id))
    await runtime.freeze(machine_id)
    await parts.disks.snapshot(record.id, generation)
    await runtime.thaw(machine_id)
    return parts.clock.monotonic() - began


async def delete(parts: Parts, record: Record, snapshot_id: str, entry: Entry) -> Record:
    """What came from it now comes from its own parent. Deleting what is gone is no error."""
    kept = parts.records.snapshots.get(snapshot_id)
    if kept is None:
        parts.records.resolve_unreadable(snapshot_id, forget=True)
    if kept is None or kept.snapshot.sandbox_id != record.id:
        return record
    if record.head == snapshot_id:
        record = parts.records.save(replace(record, head=kept.snapshot.parent or ""))
    entry.step("snapshot.forget")
    for child in parts.records.snapshots_of(record.id):
        if child.snapshot.parent == snapshot_id:
            parts.records.save_snapshot(replace(child, snapshot=replace(child.snapshot, parent=kept.snapshot.parent)))
    parts.records.remove_snapshot(snapshot_id)
    entry.step("generation.drop")
    await parts.disks.drop_generation(record.id, kept.generation.id)
    await parts.disks.sync()  # gone also after a power cut, before the intent is forgotten
    return record


async def rollback(parts: Parts, record: Record, kept: Kept, entry: Entry, undos: Undos) -> Record:
    """Its disk is the snapshot's from now on; with a new machine when it had one that ran."""
    again = record.phase is Phase.RUNNING
    await parts.disks.check_generation(record.id, kept.generation.id)  # while it still runs
    with parts.promised(record) if again else nullcontext():
        entry.step("machine.end")
        record = await machine.end(parts, record)
        try:
            record = await restore(parts, record, kept, entry)
        except SandkeepError as error:
            if again:
                what = f"its machine was ended for a rollback, which failed: {error.message}"
                parts.records.save(lifecycle.ended(record, what, parts.clock.now()))
            raise
        if not again:
            return record
        # From here on it is stopped on that disk, whatever becomes of the start.
        record = parts.records.save(record)
        record = await lifecycle.start(parts, record, entry, undos)
    return replace(record, reason=f"rolled back to {_called(kept)}")


async def restore(parts: Parts, record: Record, kept: Kept, entry: Entry | None = None) -> Record:
    """The record of the sandbox without a machine on the snapshot's disk. Recovery finishes a rollback by it."""
    if entry:
        entry.step("disk.restore", generation=kept.generation.id)
    await parts.disks.restore(record.id, kept.generation.id)
    await parts.disks.sync()
    record = record.without_condition(ConditionKind.MEMORY_LOST)
    reason = f"rolled back to {_called(kept)}"
    return replace(
        record, phase=Phase.STOPPED, hold=None, generation=None, reason=reason, exited=0, head=kept.snapshot.id
    )


def _called(kept: Kept) -> str:
    return kept.snapshot.name or kept.snapshot.id
