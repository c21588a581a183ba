"""Snapshots that move to the object store and come back, each for itself. Called by the supervisor, and by what ends one.

A snapshot's own record is the commit point: it says that all of it is in the store when that was read back, and that it is here
when its generation is whole. They share pieces with each other and with the archive of their sandbox, and so a piece goes
when none of these needs it any more.
"""

from dataclasses import asdict, replace

import anyio

from sandkeep.domain.archive import snapshot_is_away
from sandkeep.domain.errors import Conflict, NoCapacity, SandkeepError
from sandkeep.domain.ids import IdKind, is_id, new_id
from sandkeep.engine.admission import admit_disk
from sandkeep.engine.archive.vault import Chain
from sandkeep.engine.archive.worker import Folders
from sandkeep.engine.journal import Entry
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Archived, Kept, Record
from sandkeep.engine.saving import verify
from sandkeep.engine.undo import Undos
from sandkeep.telemetry.log import log


def opened(parts: Parts, record: Record) -> Record:
    """With a key for what goes to the store. Durable first of all: whoever deletes the sandbox has to know that there may be
    something."""
    if record.archive is not None:
        return record
    known = (one.archive.key for one in parts.records.snapshots_of(record.id) if one.archive)
    key = next(known, "") or parts.vault.new_chain(record.id, record.sandbox.project_id).key
    return parts.records.save(replace(record, archive=Archived(key)))


async def archive(parts: Parts, record: Record, kept: Kept, entry: Entry) -> Record:
    """Whatever fails before all of it was read back leaves it here as it was."""
    if kept.here:
        record = opened(parts, record)
        assert record.archive is not None
        entry.step("archive.upload", snapshot=kept.id)
        parts.records.save_snapshot(await _uploaded(parts, record, kept, record.archive.key))
    try:
        entry.step("generation.drop")
    finally:
        with anyio.CancelScope(shield=True):
            await _drop(parts, kept)
    return record


async def _drop(parts: Parts, kept: Kept) -> None:
    """What is left here of one that is archived."""
    owner, generation = kept.snapshot.sandbox_id, kept.generation.id
    try:
        if not parts.records.needed(generation):
            await parts.disks.drop_generation(owner, generation)
            await parts.disks.sync()  # gone also after a power cut, before the intent is forgotten
    except (SandkeepError, OSError) as error:  # asked for again, it goes then
        log("undo.failed", what="archive.drop", sandbox=owner, snapshot=kept.id, error=str(error))


async def _uploaded(parts: Parts, record: Record, kept: Kept, key: str) -> Kept:
    generation, memory = kept.generation, None
    if generation.files:
        memory = parts.disks.memory_folder(record.id, generation.id)
        await verify(memory, generation)
    await parts.disks.check_generation(record.id, generation.id)
    now = parts.clock.now()
    chain, body = await parts.vault.write(
        record.id,
        record.sandbox.project_id,
        Chain(key, snapshot=kept.id),
        Folders(parts.disks.generation_path(record.id, generation.id), memory),
        {"agent": kept.agent, **asdict(replace(generation, id=""))},
        {**asdict(record.sandbox), "snapshot": asdict(kept.snapshot)},
        now,
    )
    stored = await parts.vault.size(record.id, body)
    archived = Archived(key, chain.sequence, chain.hash, body.size, now)
    return replace(kept, snapshot=replace(kept.snapshot, archived=stored), archive=archived)


async def wake(parts: Parts, record: Record, kept: Kept, entry: Entry, undos: Undos) -> Record:
    """Its generation is here again, and shares nothing with others. Raises Conflict for an archive that is not what was put
    there; it then stays archived. What is in the store stays there, so that the next archive of it is a quick one."""
    if kept.here:
        return record
    assert kept.archive is not None
    admit_disk(await parts.capacity(), parts.settings.rules, kept.archive.size)
    generation = replace(kept.generation, id=new_id(IdKind.GENERATION))
    entry.step("archive.fetch", generation=generation.id)
    undos.push("generation", lambda: parts.disks.drop_generation(record.id, generation.id))
    fresh = await parts.disks.begin_generation(record.id, generation.id, record.disk_limit)
    memory = parts.disks.memory_folder(record.id, generation.id) if generation.files else None
    try:
        await parts.vault.unpack(record.id, record.sandbox.project_id, _chain(kept), Folders(fresh, memory))
    except NoCapacity as error:
        called = record.sandbox.name or record.id
        error.hint = f"raise its limit: sandkeep update {called} --disk SIZE, or make room in the pool"
        raise
    if memory:
        await verify(memory, generation)
    entry.step("archive.finish")
    await parts.disks.finish_generation(record.id, generation.id)
    await parts.disks.sync()

    async def away_again() -> None:
        parts.records.save_snapshot(kept)

    entry.step("snapshot.record")
    undos.push("snapshot", away_again)
    parts.records.save_snapshot(replace(kept, snapshot=replace(kept.snapshot, archived=None), generation=generation))
    return record


def check_here(parts: Parts, kept: Kept) -> Kept:
    """Raises Conflict for what needs its disk."""
    if kept.here:
        return kept
    record = parts.records.sandboxes.get(kept.snapshot.sandbox_id)
    called = record.sandbox.name if record and record.sandbox.name else kept.snapshot.sandbox_id
    raise snapshot_is_away(called, kept.snapshot.name or kept.id)


async def forget(parts: Parts, record: Record, kept: Kept) -> None:
    """What is in the store for it alone goes, before its record does: whoever is told that it is deleted can rely on it. Raises
    Unavailable; it is then still there, or half gone and deleted again."""
    if kept.archive is not None:
        await prune(parts, record, without=kept.id)
        await parts.vault.forget(record.id, _chain(kept))


async def prune(parts: Parts, record: Record, *, without: str = "", pieces: set[str] | None = None) -> None:
    """Out of the store goes what neither the archive of the sandbox nor those of its snapshots need. `without`: one that is
    being deleted; `pieces`: of the sandbox's own archive, when they are known. In doubt everything stays."""
    if any(is_id(name, IdKind.SNAPSHOT) for name in parts.records.unreadable):
        return  # it may be what needs a piece
    kept = [one for one in parts.records.snapshots_of(record.id) if one.archive and one.id != without]
    chains = [_chain(one) for one in kept]
    needed = set(pieces or ())
    own = record.archive
    try:
        if own and own.sequence:
            mine = chain_of(own)
            if pieces is None:
                needed |= await _pieces(parts, record, mine)
            chains.append(mine)
        for one in kept:
            needed |= await _pieces(parts, record, _chain(one))
    except Conflict as error:  # what a damaged manifest needs nobody knows
        log("archive.not_pruned", "warning", sandbox=record.id, error=error.message)
        return
    await parts.vault.prune(record.id, chains, needed)


async def _pieces(parts: Parts, record: Record, chain: Chain) -> set[str]:
    return (await parts.vault.read(record.id, record.sandbox.project_id, chain)).body.pieces()


def chain_of(archived: Archived, snapshot_id: str = "") -> Chain:
    """snapshot_id: of the snapshot that it is the archive of, '': of the sandbox itself."""
    return Chain(archived.key, archived.sequence, archived.hash, snapshot_id)


def _chain(kept: Kept) -> Chain:
    assert kept.archive is not None
    return chain_of(kept.archive, kept.id)
