"""Pause and resume. To memory: freeze and thaw. To disk: one generation of memory, processes and disk."""

from contextlib import suppress
from dataclasses import replace

from sandkeep.contracts.runtime import MemoryImage
from sandkeep.domain.errors import Conflict, NotFound
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.sandbox import ConditionKind, Hold, Phase
from sandkeep.engine import agents, machine, receipts
from sandkeep.engine.journal import Entry
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Generation, Record
from sandkeep.engine.saving import Save, verify
from sandkeep.engine.undo import Undos
from sandkeep.lib.together import together


async def pause_in_memory(parts: Parts, record: Record, entry: Entry) -> Record:
    assert record.machine is not None
    entry.step("machine.freeze")
    await parts.runtime(record.spec.runtime).freeze(record.machine)
    paused = record.without_condition(ConditionKind.MEMORY_LOST)
    return replace(paused, phase=Phase.PAUSED, hold=Hold.MEMORY, reason="paused, memory kept resident")


async def resume_in_memory(parts: Parts, record: Record, entry: Entry) -> Record:
    assert record.machine is not None
    entry.step("machine.thaw")
    await parts.runtime(record.spec.runtime).thaw(record.machine)
    return replace(record, phase=Phase.RUNNING, hold=None, reason="resumed from memory")


async def freeze_again(parts: Parts, record: Record) -> None:
    """A pause to disk of what was held in memory did not happen. A machine that died meanwhile is nobody's failure here."""
    with suppress(NotFound):
        await parts.runtime(record.spec.runtime).freeze(record.machine or "")


async def pause_to_disk(parts: Parts, record: Record, entry: Entry) -> Record:
    """Returns the record of the paused sandbox; the machine still lives, frozen: the caller makes the record durable and
    then ends it. Raises PauseFailed (the machine runs on), NoCapacity."""
    save = Save(parts, record, new_id(IdKind.GENERATION), "pause")
    await save.check()
    async with save.failing(), Undos() as undos:
        await save.memory(entry, undos)
        async with together() as both:
            both.start_soon(save.disk, entry)
            both.start_soon(save.files)
        kept = await save.durable(entry)
    saved = record.with_condition(ConditionKind.MEMORY_SAVABLE, True, "the memory was saved", parts.clock.now())
    saved = saved.without_condition(ConditionKind.MEMORY_LOST)
    return replace(saved, phase=Phase.PAUSED, hold=Hold.DISK, generation=kept, reason="paused to disk")


def check_fits(parts: Parts, record: Record, kept: Generation) -> MemoryImage:
    """What the runtime restores it from. Raises Unsupported when this host has not what it was saved with."""
    image = MemoryImage(tuple(kept.files), kept.requires)
    parts.runtime(record.spec.runtime).check_image(image)
    agents.check_kept(parts, record)
    return image


async def resume_from_disk(
    parts: Parts,
    record: Record,
    entry: Entry,
    undos: Undos,
    *,
    event: str = "resume",
    verified: bool = False,
) -> Record:
    """A fresh clone of the generation goes on running; the generation is untouched until the caller drops it. `verified`: a
    moment ago."""
    kept = record.generation
    if kept is None:
        raise Conflict("there is no memory image to resume from", hint="start it from its disk: sandkeep start")
    image = check_fits(parts, record, kept)
    folder = parts.disks.memory_folder(record.id, kept.id)
    record = machine.next_machine(parts, record, undos)
    entry.step("disk.restore", generation=kept.id, machine=record.machine, slot=record.slot)
    async with together() as side:
        if not verified:
            side.start_soon(verify, folder, kept)
        side.start_soon(parts.disks.restore, record.id, kept.id)
        await machine.connect(parts, record, entry, undos, blocked=True)
    foreign = parts.records.token_in(kept.id)
    resumed = await machine.restore(parts, record, folder, image, entry, undos, event=event, credential=foreign)
    record = await receipts.admit(parts, record, receipts.Came(event, record.id, kept.id, resumed), entry)
    return replace(record, phase=Phase.RUNNING, hold=None, owed=None, reason="resumed from disk")
