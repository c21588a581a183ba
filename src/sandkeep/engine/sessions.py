"""Sessions: a sandbox that starts from the same point in time each time (persistence=snapshot). Called where its machine is
made and ended.

The point is a generation of its own, named by the record; a snapshot may share it. What a session wrote is gone when the next
one starts, unless it was committed: then the disk as it is becomes the point.
"""

from dataclasses import replace

from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.sandbox import Commit, Persistence
from sandkeep.engine import machine
from sandkeep.engine.journal import Entry
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Generation, Record
from sandkeep.engine.undo import Undos


async def first_point(parts: Parts, record: Record, entry: Entry, undos: Undos) -> Record:
    """Of a sandbox that has just been made: what it is now, with an identity of its own, is where each session starts."""
    if record.spec.persistence is not Persistence.SNAPSHOT:
        return record
    entry.step("guest.flush")
    await machine.flush(parts, record)
    point = await _keep(parts, record, entry)
    undos.push("generation", lambda: parts.disks.drop_generation(record.id, point.id))
    return replace(record, point=point)


async def rewind(parts: Parts, record: Record, entry: Entry) -> Record:
    """Before a start."""
    if record.point is not None:
        entry.step("disk.restore", generation=record.point.id)
        await parts.disks.restore(record.id, record.point.id)
        record = replace(record, head=_head(parts, record.point))
    return record


async def close(parts: Parts, record: Record, entry: Entry | None = None) -> Record:
    """Its machine was ended because that was asked for: the disk becomes the point, or goes back to it. Recovery finishes a stop
    by it."""
    if record.point is None:
        return record
    if record.spec.commit is Commit.ON_STOP:
        return replace(record, point=await _keep(parts, record, entry))
    if entry:
        entry.step("disk.restore", generation=record.point.id)
    await parts.disks.restore(record.id, record.point.id)
    await parts.disks.sync()
    return replace(record, head=_head(parts, record.point))


def _head(parts: Parts, point: Generation) -> str:
    """The snapshot that the point was committed as, if it still is one."""
    return next((kept.id for kept in parts.records.snapshots.values() if kept.generation.id == point.id), "")


async def _keep(parts: Parts, record: Record, entry: Entry | None) -> Generation:
    generation = new_id(IdKind.GENERATION)
    if entry:
        entry.step("disk.snapshot", generation=generation)
    await parts.disks.snapshot(record.id, generation)
    await parts.disks.sync()
    return Generation(generation, parts.clock.now(), files={}, requires={})
