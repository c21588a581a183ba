"""Rescue: a full disk gets some more room for one stay, so that its owner can clean it. Called by the supervisor.

The extra bytes are in the record, and recovery sets every limit to what its record says: a crash between the limit and
the record leaves nothing raised.
"""

from dataclasses import replace

from sandkeep.domain.errors import Conflict
from sandkeep.domain.quantities import GIB, MIB, format_size
from sandkeep.domain.sandbox import ConditionKind
from sandkeep.engine.journal import Entry
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Record
from sandkeep.engine.undo import Undos


def extra(limit: int) -> int:
    """Bytes: a tenth of the disk's limit, 64 MiB to 1 GiB."""
    return min(max(limit // 10, 64 * MIB), GIB)


async def set_room(parts: Parts, record: Record, entry: Entry, undos: Undos, rescue: bool) -> Record:
    """Before a start: with more room, or with what it had in a rescue given back."""
    if not rescue:
        return await give_back(parts, record, entry)
    more = extra(record.spec.limits.disk)
    entry.step("disk.limit", rescue=more)
    before = record.disk_limit
    undos.push("limit", lambda: parts.disks.set_limit(record.id, before))
    await parts.disks.set_limit(record.id, record.spec.limits.disk + more)
    why = f"its disk holds {format_size(more)} above its limit until it is stopped, or started again without rescue"
    return replace(record, rescue=more).with_condition(ConditionKind.RESCUE, True, why, parts.clock.now())


async def give_back(parts: Parts, record: Record, entry: Entry) -> Record:
    """The limit is its own again. What it holds above it stays; it can only become less."""
    if not record.rescue:
        return record
    entry.step("disk.limit", rescue=0)
    await parts.disks.set_limit(record.id, record.spec.limits.disk)
    return replace(record, rescue=0).without_condition(ConditionKind.RESCUE)


async def leave_or_stay(parts: Parts, record: Record, entry: Entry, rescue: bool) -> Record:
    """A start of what runs already. Raises Conflict when it is not in rescue and shall be."""
    if rescue and not record.rescue:
        raise Conflict("it runs: rescue is for the next start", hint="stop it first: sandkeep stop")
    return record if rescue else await give_back(parts, record, entry)
