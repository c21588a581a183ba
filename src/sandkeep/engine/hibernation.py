"""Pause and resume. To memory: freeze and thaw. To disk: one generation of memory, processes and disk, in the order that
gVisor needs (the quiesce protocol: outside connections are reset first, then a dry checkpoint, then the real one)."""

import hashlib
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from sandkeep.contracts.network import Attachment
from sandkeep.contracts.runtime import MemoryImage, Runtime
from sandkeep.domain.errors import Conflict, GuestError, Internal, NotFound, PauseFailed, SandkeepError
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.sandbox import ConditionKind, Hold, Phase
from sandkeep.engine import agents, machine
from sandkeep.engine.admission import admit_save
from sandkeep.engine.journal import Entry
from sandkeep.engine.parts import Parts, hostname
from sandkeep.engine.records import Generation, Record
from sandkeep.engine.undo import Undos
from sandkeep.lib.files import open_plain, sync_files
from sandkeep.lib.together import together

_PROBES = 4
_DIGEST_WAIT = 0.03
"""Seconds in which programs inside meet the resets of their connections (engine reference, section 3.4)."""


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


async def check_savable(parts: Parts, record: Record) -> None:
    """Raises PauseFailed, naming process and file, when gVisor could not save the memory. Nothing was touched."""
    try:
        found = await parts.guest.quiesce(parts.endpoint(record), parts.settings.quiesce_deadline)
    except GuestError as error:
        raise PauseFailed(
            f"its agent could not say whether its memory can be saved: {error.message}",
            hint="stop it, or pause with --or-disk to keep the disk only",
            connections_reset=False,
        ) from error
    if found:
        listed = ", ".join(f"{item.process} (pid {item.pid}) {item.path}" for item in found[:5])
        raise PauseFailed(
            f"{len(found)} deleted but still open files cannot be saved with the memory: {listed}",
            hint="restart these processes, or pause with --or-disk to keep the disk only",
            connections_reset=False,
            unsavable=[{"pid": item.pid, "process": item.process, "path": item.path} for item in found],
        )


async def pause_to_disk(parts: Parts, record: Record, entry: Entry) -> Record:
    """Returns the record of the paused sandbox; the machine still lives, frozen: the caller makes the record durable and
    then ends it. Raises PauseFailed (the machine runs on), NoCapacity."""
    assert record.machine is not None
    runtime = parts.runtime(record.spec.runtime)
    attachment = parts.networks.describe(record.id, record.slot, record.spec.network)
    usage = await runtime.usage(record.machine)
    admit_save(await parts.capacity(), parts.settings.rules, usage.memory if usage else 0)
    await check_savable(parts, record)

    generation = new_id(IdKind.GENERATION)
    reset = False
    try:
        async with Undos() as undos:
            entry.step("generation.begin", generation=generation)
            undos.push("generation", lambda: parts.disks.drop_generation(record.id, generation))
            folder = await parts.disks.make_memory_folder(record.id, generation)
            entry.step("network.reset")
            await parts.guest.hang_up(attachment.address)
            undos.push("thaw", lambda: runtime.thaw(record.machine or ""))
            undos.push("network", lambda: parts.networks.unblock(attachment))
            await parts.networks.reset_tcp(attachment)
            reset = True
            entry.step("memory.probe")
            await _probe(parts, runtime, attachment, record.machine)
            await anyio.sleep(_DIGEST_WAIT)
            entry.step("memory.save")
            image = await runtime.save(record.machine, folder)
            entry.step("disk.snapshot")
            async with together() as both:
                both.start_soon(parts.disks.snapshot, record.id, generation)
                checksums: dict[str, str] = {}
                both.start_soon(_checksum_into, folder, image.files, checksums)
                both.start_soon(run_sync, sync_files, folder, image.files)
            entry.step("disk.sync")
            await parts.disks.sync()
    except PauseFailed as error:
        error.details["connections_reset"] = reset
        raise
    except (SandkeepError, OSError) as error:
        why, hint = str(error), "it is as it was" + ("; its outside connections were reset" if reset else "")
        if not await _lives(runtime, record.machine):
            why = f"its machine {await runtime.wait_exit(record.machine)}"
            hint = "the disk is kept; what is done now its rule for failures says: sandkeep why NAME"
        raise PauseFailed(f"the pause failed: {why}", hint=hint, connections_reset=reset) from error
    kept = Generation(generation, parts.clock.now(), checksums, image.requires)
    saved = record.with_condition(ConditionKind.MEMORY_SAVABLE, True, "the memory was saved", parts.clock.now())
    saved = saved.without_condition(ConditionKind.MEMORY_LOST)
    return replace(saved, phase=Phase.PAUSED, hold=Hold.DISK, generation=kept, reason="paused to disk")


async def _lives(runtime: Runtime, machine_id: str) -> bool:
    return any(one.id == machine_id and one.pids for one in await runtime.machines())


async def _probe(parts: Parts, runtime: Runtime, attachment: Attachment, machine_id: str) -> None:
    """Connections that wait for a host which never answers are refused, and probed again."""
    for _ in range(_PROBES):
        try:
            await runtime.prepare_save(machine_id)
        except PauseFailed as error:
            failure = error
            if not error.details.get("connecting"):
                break
            await parts.networks.refuse_connecting(attachment)
        else:
            return
    raise failure


def check_fits(parts: Parts, record: Record, kept: Generation) -> MemoryImage:
    """What the runtime restores it from. Raises Unsupported when this host has not what it was saved with."""
    image = MemoryImage(tuple(kept.files), kept.requires)
    parts.runtime(record.spec.runtime).check_image(image)
    agents.check_kept(parts, record)
    return image


async def resume_from_disk(parts: Parts, record: Record, entry: Entry, undos: Undos) -> Record:
    """A fresh clone of the generation goes on running; the generation is untouched until the caller drops it."""
    kept = record.generation
    if kept is None:
        raise Conflict("there is no memory image to resume from", hint="start it from its disk: sandkeep start")
    runtime = parts.runtime(record.spec.runtime)
    image = check_fits(parts, record, kept)
    folder = parts.disks.memory_folder(record.id, kept.id)
    record = machine.next_machine(parts, record, undos)
    entry.step("disk.restore", generation=kept.id, machine=record.machine, slot=record.slot)
    async with together() as side:
        side.start_soon(verify, folder, kept)
        side.start_soon(parts.disks.restore, record.id, kept.id)
        attachment = await machine.connect(parts, record, entry, undos, blocked=True)
    plan = parts.plan(record)
    entry.step("memory.restore", machine=plan.id)
    undos.push("machine", lambda: runtime.kill(plan.id))
    await runtime.restore(plan, folder, image)
    endpoint = parts.endpoint(record)
    async with machine.while_alive(runtime, plan.id):
        await parts.guest.wait_ready(endpoint, parts.settings.boot_deadline)
        entry.step("guest.resume")
        await parts.guest.resumed(endpoint, hostname(record), parts.clock.now, kept.id)
    entry.step("network.unblock")
    await parts.networks.unblock(attachment)
    return replace(record, phase=Phase.RUNNING, hold=None, reason="resumed from disk")


async def verify(folder: Path, generation: Generation) -> None:
    """Raises Internal when a memory file is not what was written: it is then never handed to a runtime."""
    found: dict[str, str] = {}
    try:
        await _checksum_into(folder, tuple(generation.files), found)
    except OSError as error:
        raise Internal(
            f"the memory image cannot be read: {error.strerror}", hint="start from the disk: sandkeep start NAME"
        ) from error
    wrong = [name for name, checksum in generation.files.items() if found.get(name) != checksum]
    if wrong:
        raise Internal(
            f"the memory image is damaged ({', '.join(wrong)})", hint="start from the disk: sandkeep start NAME"
        )


async def _checksum_into(folder: Path, files: tuple[str, ...], into: dict[str, str]) -> None:
    """A thread that a bad disk holds is left behind when the deadline comes: what was done so far is undone without it."""
    for name in files:
        into[name] = await run_sync(_checksum, folder / name, abandon_on_cancel=True)


def _checksum(path: Path) -> str:
    with open(open_plain(path), "rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256")  # into one buffer: fresh ones for each piece take as long again
        return f"{os.fstat(file.fileno()).st_size}:{digest.hexdigest()}"
