"""Snapshots on the node: a generation that stays until somebody deletes it, the way back to it, and its end.

The generation is made first and the record of the snapshot last; what a crash leaves without one is dropped by recovery.
"""

import secrets
from contextlib import nullcontext
from dataclasses import replace

from sandkeep.domain.errors import Conflict, NotFound, SandkeepError, Unsupported
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import OperationRef, SandboxOnNode, SnapshotOnNode
from sandkeep.domain.sandbox import ConditionKind, Hold, Phase
from sandkeep.domain.snapshot import SnapshotKind
from sandkeep.engine import archived_snapshots, hibernation, identity, lifecycle, machine, receipts, sessions
from sandkeep.engine.journal import Entry
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Generation, Kept, Record
from sandkeep.engine.saving import Save, verify
from sandkeep.engine.undo import Undos
from sandkeep.lib.together import together

_EVENT = "snapshot"


def find(parts: Parts, sandbox_id: str, snapshot_id: str) -> Kept:
    """Raises NotFound."""
    kept = parts.records.snapshots.get(snapshot_id)
    if kept is None or kept.snapshot.sandbox_id != sandbox_id:
        raise NotFound(f"snapshot {snapshot_id} of {sandbox_id} is not on this node")
    return kept


def find_here(parts: Parts, sandbox_id: str, snapshot_id: str) -> Kept:
    """Raises NotFound; Conflict for one that is in the object store."""
    return archived_snapshots.check_here(parts, find(parts, sandbox_id, snapshot_id))


async def make(parts: Parts, record: Record, wanted: SnapshotOnNode, entry: Entry, undos: Undos) -> Record:
    """Of this moment; a child of what its disk came from. What runs runs on."""
    after = replace(record, head=wanted.id)
    if wanted.id in parts.records.snapshots:  # a crash came between its record and the sandbox's
        return after
    if wanted.kind is SnapshotKind.FULL:
        generation, held = await _full(parts, record, entry, undos)
    else:
        generation, held = await _of_disk(parts, record, entry, undos)
    made = replace(wanted, held=held, parent=record.head or None)
    foreign = parts.records.foreign(generation.id)
    origin, token = (foreign.origin, foreign.token) if foreign else ("", "")
    _save(parts, Kept(made, generation, record.agent, origin, token), entry, undos)
    return after


def _save(parts: Parts, kept: Kept, entry: Entry, undos: Undos) -> None:
    """It goes with its generation when the sandbox's record cannot be written."""
    entry.step("snapshot.record")

    async def forget() -> None:
        parts.records.remove_snapshot(kept.id)

    undos.push("snapshot", forget)
    parts.records.save_snapshot(kept)


async def adopt(
    parts: Parts, record: Record, wanted: SnapshotOnNode, source: Record, of: Kept, entry: Entry, undos: Undos
) -> Record:
    """A snapshot of another sandbox becomes one of this one, too."""
    if wanted.id in parts.records.snapshots:
        return record
    generation = replace(of.generation, id=new_id(IdKind.GENERATION))
    entry.step("generation.copy", generation=generation.id)
    undos.push("generation", lambda: parts.disks.drop_generation(record.id, generation.id))
    await parts.disks.copy_generation(record.id, generation.id, source.id, of.generation.id)
    entry.step("disk.sync")
    await parts.disks.sync()
    made = replace(wanted, held=of.snapshot.held, parent=record.head or None)
    origin, token = of.origin or source.id, of.token or source.token
    _save(parts, Kept(made, generation, of.agent, origin, token if generation.files else ""), entry, undos)
    return record


async def _of_disk(parts: Parts, record: Record, entry: Entry, undos: Undos) -> tuple[Generation, float]:
    """Running processes stand still only where the disk driver cannot keep one instant."""
    generation = new_id(IdKind.GENERATION)
    running, held = record.phase is Phase.RUNNING, 0.0
    if running:
        entry.step("guest.flush")
        await machine.flush(parts, record, _EVENT)
    entry.step("generation.begin", generation=generation)
    undos.push("generation", lambda: parts.disks.drop_generation(record.id, generation))
    entry.step("disk.snapshot")
    if running and not parts.disks.capabilities.atomic:
        held = await _snapshot_frozen(parts, record, generation, undos)
    else:
        await parts.disks.snapshot(record.id, generation)
    if running:
        entry.step("guest.thaw")
        await machine.unquiesce(parts, record, _EVENT)
    entry.step("disk.sync")
    await parts.disks.sync()
    return Generation(generation, parts.clock.now(), files={}, requires={}), held


async def _full(parts: Parts, record: Record, entry: Entry, undos: Undos) -> tuple[Generation, float]:
    """With memory and processes. What is paused on disk shares that generation."""
    if record.phase is Phase.PAUSED and record.generation:
        return record.generation, 0.0
    if record.phase not in (Phase.RUNNING, Phase.PAUSED):
        raise Conflict(f"it is {record.phase}: there is no memory to keep", hint="keep its disk: snapshot --kind disk")
    capabilities = parts.runtime(record.spec.runtime).capabilities
    if Hold.DISK not in capabilities.holds:
        reason = capabilities.unsupported.get("full", "its memory cannot be saved")
        raise Unsupported(f"{record.spec.runtime}: {reason}", hint="keep its disk: snapshot --kind disk", field="kind")
    if record.phase is Phase.PAUSED:  # its record goes on saying so: what fails or is interrupted is frozen again
        undos.push("freeze", lambda: hibernation.freeze_again(parts, record))
        await hibernation.resume_in_memory(parts, record, entry)
    save = Save(parts, record, new_id(IdKind.GENERATION), _EVENT, stays=True)
    await save.check()
    async with save.failing():
        await save.memory(entry, undos)
        await save.disk(entry)
        await save.run_on(entry)
        await save.files()
        kept = await save.durable(entry)
    await machine.unquiesce(parts, record, _EVENT)
    if record.phase is Phase.PAUSED:
        entry.step("machine.freeze")
        await hibernation.freeze_again(parts, record)
    return kept, save.held


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
    if kept.archive:
        entry.step("archive.forget")
        await archived_snapshots.forget(parts, record, kept)
    if record.head == snapshot_id:
        record = parts.records.save(replace(record, head=kept.snapshot.parent or ""))
    entry.step("snapshot.forget")
    for child in parts.records.snapshots_of(record.id):
        if child.snapshot.parent == snapshot_id:
            parts.records.save_snapshot(replace(child, snapshot=replace(child.snapshot, parent=kept.snapshot.parent)))
    parts.records.remove_snapshot(snapshot_id)
    entry.step("generation.drop")
    if not parts.records.needed(kept.generation.id):
        await parts.disks.drop_generation(record.id, kept.generation.id)
    await parts.disks.sync()  # gone also after a power cut, before the intent is forgotten
    return record


async def rollback(parts: Parts, record: Record, kept: Kept, memory: bool, entry: Entry, undos: Undos) -> Record:
    """Its disk is the snapshot's from now on; with a new machine when it had one that ran. `memory`: that goes on from the
    snapshot's memory; without one it is then paused at that moment."""
    again = record.phase is Phase.RUNNING
    await parts.disks.check_generation(record.id, kept.generation.id)  # while it still runs
    if memory:
        await _check_memory(parts, record, kept)
    if identity.is_anothers(record, kept) and record.owed is None:
        record = parts.records.save(replace(record, owed=await identity.of_disk(parts, record)))
    with parts.promised(record) if again else nullcontext():
        entry.step("machine.end")
        record = await machine.end(parts, record)
        if memory:
            record = paused_at(record, kept)
            if not again:
                return record
            record = parts.records.save(
                record
            )  # from here on it is paused at that moment, whatever becomes of the resume
            record = await hibernation.resume_from_disk(parts, record, entry, undos, event="rollback", verified=True)
            return replace(record, generation=None, reason=f"rolled back to {_called(kept)}")
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
        came = receipts.Came("rollback", record.id, kept.generation.id)
        record = await lifecycle.start(parts, record, entry, undos, came)
    return replace(record, reason=f"rolled back to {_called(kept)}")


async def _check_memory(parts: Parts, record: Record, kept: Kept) -> None:
    """Raises Conflict, Unsupported, Internal; nothing was touched."""
    if not kept.generation.files:
        raise Conflict(f"{_called(kept)} has no memory", hint="it is a snapshot of the disk alone")
    hibernation.check_fits(parts, replace(record, agent=kept.agent), kept.generation)
    await verify(parts.disks.memory_folder(record.id, kept.generation.id), kept.generation)


async def fork_memory(
    parts: Parts, operation: OperationRef, sandbox: SandboxOnNode, origin: Kept, entry: Entry, undos: Undos
) -> Record:
    """Another sandbox that goes on from the snapshot's memory and disk, under an identity of its own: running and answering when
    it returns. Nothing reaches it before it has one."""
    source = parts.records.sandboxes.get(origin.snapshot.sandbox_id)
    if source is None:
        raise NotFound(f"sandbox {origin.snapshot.sandbox_id} has no record on this node")
    record = Record(sandbox, operation.epoch, 0, secrets.token_urlsafe(32), agent=origin.agent)
    await parts.disks.check_generation(source.id, origin.generation.id)
    image = hibernation.check_fits(parts, record, origin.generation)
    folder = parts.disks.memory_folder(source.id, origin.generation.id)
    record = machine.next_machine(parts, record, undos)
    entry.step("disk.create", generation=origin.generation.id, machine=record.machine, slot=record.slot)
    undos.push("disk", lambda: parts.disks.delete(record.id))
    async with together() as side:
        side.start_soon(verify, folder, origin.generation)
        side.start_soon(parts.disks.fork, record.id, source.id, origin.generation.id, sandbox.spec.limits.disk)
        await machine.connect(parts, record, entry, undos, blocked=True)
    async with together() as side:
        side.start_soon(parts.disks.sync)
        resumed = await machine.restore(
            parts, record, folder, image, entry, undos, event="fork", credential=origin.token or source.token
        )
    came = receipts.Came("fork", source.id, origin.generation.id, resumed)
    record = await receipts.admit(parts, record, came, entry)
    now = parts.clock.now()
    ready = record.with_condition(ConditionKind.GUEST_READY, True, "the agent answers", now)
    ready = ready.with_condition(ConditionKind.DISK_READY, True, "the disk is attached", now)
    ready = replace(ready, phase=Phase.RUNNING, reason="forked with its memory")
    return await sessions.first_point(parts, ready, entry, undos)


def paused_at(record: Record, kept: Kept) -> Record:
    """The record of the sandbox without a machine, paused on disk at the snapshot's moment, whose generation it shares. Recovery
    finishes a rollback by it."""
    record = record.without_condition(ConditionKind.MEMORY_LOST)
    return replace(
        record,
        phase=Phase.PAUSED,
        hold=Hold.DISK,
        generation=kept.generation,
        agent=kept.agent,
        reason=f"rolled back to {_called(kept)}",
        exited=0,
        head=kept.snapshot.id,
    )


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
