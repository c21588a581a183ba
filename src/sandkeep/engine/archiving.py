"""Archive and wake: a sandbox's state goes to the store, and comes back.

The local copy goes only after the archive was read back and the record says archived; until then the record says that the
sandbox is here, and what lies in the store is nothing but a start for the next try. The way back is the same mirrored.
"""

from contextlib import suppress
from dataclasses import asdict, replace

from sandkeep.domain.errors import Conflict, NoCapacity, SandkeepError, Unsupported
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.quantities import format_size
from sandkeep.domain.sandbox import ConditionKind, Hold, Persistence, Phase
from sandkeep.engine import hibernation
from sandkeep.engine.admission import admit_disk
from sandkeep.engine.archive.vault import Since, Unpacked
from sandkeep.engine.archive.worker import Folders
from sandkeep.engine.archived_snapshots import chain_of, opened, prune
from sandkeep.engine.journal import Entry
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Archived, Record, Woken
from sandkeep.engine.saving import verify
from sandkeep.engine.undo import Undos
from sandkeep.telemetry.log import log

_UNDISTURBED = frozenset(
    {"archive", "wake", "update", "set_timeline", "delete_snapshot", "archive_snapshot", "wake_snapshot"}
)
"""What can be done with an archived sandbox."""


def check_here(record: Record, verb: str) -> None:
    """Raises Conflict for what needs a disk, of one whose disk is in the store."""
    if record.phase is Phase.ARCHIVED and verb not in _UNDISTURBED:
        raise Conflict("it is archived: its disk is not here", hint=f"bring it back: sandkeep wake {_called(record)}")


async def archive(parts: Parts, record: Record, entry: Entry) -> Record:
    """Its record when all of it is in the store, verified. The caller makes that durable, and then drops what is here."""
    if record.phase is Phase.ARCHIVED:
        return record
    _check_possible(record)
    if record.generation and parts.records.token_in(record.generation.id) is not None:
        raise Conflict(
            "it is paused in a memory that came from another sandbox, which opens here alone",
            hint=f"let it run once, and pause it again: sandkeep resume {_called(record)}",
        )
    record = opened(parts, record)
    assert record.archive is not None
    kept, memory = record.generation, None
    if kept:
        entry.step("disk.restore", generation=kept.id)
        memory = parts.disks.memory_folder(record.id, kept.id)
        await verify(memory, kept)
        await parts.disks.restore(record.id, kept.id)
    entry.step("archive.upload")
    described = {"agent": record.agent, **asdict(replace(kept, id=""))} if kept else {}
    chain, body = await parts.vault.write(
        record.id,
        record.sandbox.project_id,
        chain_of(record.archive),
        Folders(parts.disks.path(record.id), memory),
        described,
        asdict(record.sandbox),
        parts.clock.now(),
        await _since(parts, record),
    )
    archived = Archived(chain.key, chain.sequence, chain.hash, body.size, parts.clock.now(), kept)
    with suppress(SandkeepError):  # the next one removes it then
        await prune(parts, replace(record, archive=archived), pieces=body.pieces())
    what = "disk and memory" if kept else "disk"
    return replace(
        record,
        phase=Phase.ARCHIVED,
        hold=None,
        generation=None,
        archive=archived,
        exited=0,
        reason=f"archived and read back: {what}, {format_size(body.size)} in {len(body.pieces())} pieces",
    )


async def drop(parts: Parts, record: Record) -> None:
    """What is left here of one that is archived. Snapshots stay."""
    try:
        await parts.disks.drop_disk(record.id)
    except (SandkeepError, OSError) as error:  # recovery does it then
        log("undo.failed", what="archive.drop", sandbox=record.id, error=str(error))


async def wake(parts: Parts, record: Record, entry: Entry, undos: Undos, disk_only: bool) -> Record:
    """Back on this node: paused when its memory was archived, too, else stopped. Raises Conflict for an archive that is not
    what was put there, Unsupported for a memory that does not fit this host; it is then as it was."""
    if record.phase in (Phase.PAUSED, Phase.STOPPED):
        return record
    if record.phase is not Phase.ARCHIVED or record.archive is None:
        raise Conflict(f"it is {record.phase}, not archived")
    kept = None if disk_only else record.archive.memory
    if kept:
        try:
            hibernation.check_fits(parts, record, kept)
        except SandkeepError as error:
            raise _with_fallback(record, error) from error
    capacity = await parts.capacity()
    admit_disk(capacity, parts.settings.rules, record.archive.size)
    entry.step("archive.fetch")
    await parts.disks.drop_disk(record.id)  # what an interrupted archive or wake left: the archive is what counts
    undos.push("disk", lambda: parts.disks.drop_disk(record.id))
    fresh, memory = await parts.disks.begin_disk(record.id, record.disk_limit), None
    generation = new_id(IdKind.GENERATION)
    if kept:
        undos.push("generation", lambda: parts.disks.drop_generation(record.id, generation))
        memory = await parts.disks.make_memory_folder(record.id, generation)
    try:
        unpacked = await parts.vault.unpack(
            record.id, record.sandbox.project_id, chain_of(record.archive), Folders(fresh, memory)
        )
    except Conflict as error:
        raise _with_fallback(record, error) if kept else error from None
    except NoCapacity as error:
        error.hint = f"raise its limit: sandkeep update {_called(record)} --disk SIZE, or make room in the pool"
        raise
    entry.step("archive.finish")
    await parts.disks.finish_disk(record.id)
    record = await _marked(parts, record, unpacked)
    if kept:
        await parts.disks.snapshot(record.id, generation)
    await parts.disks.sync()
    said = f"; {unpacked.left_out} devices were left out" if unpacked.left_out else ""
    if not kept:
        dropped = "; its memory was left aside" if record.archive and record.archive.memory else ""
        reason = f"woken from its archive{dropped}{said}"
        record = record.without_condition(ConditionKind.MEMORY_LOST)
        return replace(record, phase=Phase.STOPPED, hold=None, generation=None, exited=0, reason=reason)
    return replace(
        record,
        phase=Phase.PAUSED,
        hold=Hold.DISK,
        generation=replace(kept, id=generation),
        exited=0,
        reason=f"woken from its archive, with its memory{said}",
    )


async def _marked(parts: Parts, record: Record, unpacked: Unpacked) -> Record:
    """So that the next archive reads what was changed by then, where the disk driver can tell."""
    assert record.archive is not None
    woken = None
    if unpacked.first is not None and unpacked.stored:
        # Of this disk and what is cloned of it; any other, of an older wake, is another moment.
        mark = new_id(IdKind.GENERATION)
        moment = await parts.disks.mark(record.id, mark)
        woken = None if moment is None else Woken(mark, moment, unpacked.first, unpacked.stored)
    return replace(record, archive=replace(record.archive, woken=woken))


async def _since(parts: Parts, record: Record) -> Since | None:
    """None: everything is to be read. So it is after a rollback to a moment before the wake: that disk has no such mark."""
    assert record.archive is not None
    woken = record.archive.woken
    if woken is None:
        return None
    touched = await parts.disks.inodes_since(record.id, woken.mark, woken.moment)
    return None if touched is None else Since(woken.first, woken.stored, touched)


def _check_possible(record: Record) -> None:
    """Raises Conflict, Unsupported."""
    if record.spec.persistence in (Persistence.EPHEMERAL, Persistence.SNAPSHOT):
        raise Unsupported(
            f"persistence={record.spec.persistence} keeps nothing of its own that could be archived",
            hint="archive a sandbox of persistence=volume or full; a fork of this one can be such",
            field="persistence",
        )
    if record.phase is Phase.STOPPED or (record.phase is Phase.PAUSED and record.hold is Hold.DISK):
        return
    called = _called(record)
    hint = f"stop it first: sandkeep stop {called}"
    if record.spec.persistence is Persistence.FULL:
        hint = f"pause it to disk first: sandkeep pause {called}"
    held = " in memory" if record.phase is Phase.PAUSED else ""
    raise Conflict(f"it is {record.phase}{held}: only what is stopped, or paused on disk, can be archived", hint=hint)


def _with_fallback(record: Record, error: SandkeepError) -> SandkeepError:
    hint = f"its disk alone may come back: sandkeep wake {_called(record)} --disk-only"
    return type(error)(error.message, hint=hint, **error.details)


def _called(record: Record) -> str:
    return record.sandbox.name or record.id
