"""Create, start, stop, delete: each a short list of steps over disk, network and machine."""

import secrets
from dataclasses import replace

from anyio.to_thread import run_sync

from sandkeep.domain.errors import InvalidArgument, NotFound, SandkeepError, Unsupported
from sandkeep.domain.node import OperationRef, SandboxOnNode
from sandkeep.domain.sandbox import ConditionKind, Hold, Persistence, Phase
from sandkeep.engine import machine, receipts, sessions
from sandkeep.engine.journal import Entry
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Kept, Record
from sandkeep.engine.undo import Undos
from sandkeep.lib.together import together


async def create(
    parts: Parts,
    operation: OperationRef,
    sandbox: SandboxOnNode,
    entry: Entry,
    undos: Undos,
    origin: Kept | None = None,
) -> Record:
    """Disk and network side by side, then the machine. Running and answering when it returns. `origin`: the snapshot that
    its disk is forked from, else its template."""
    record = Record(sandbox=sandbox, epoch=operation.epoch, slot=0, token=secrets.token_urlsafe(32))
    record = machine.next_machine(parts, record, undos)
    entry.step("disk.create", template=sandbox.spec.template, machine=record.machine, slot=record.slot)
    undos.push("disk", lambda: parts.disks.delete(record.id))
    async with together() as side:
        if origin:
            source = origin.snapshot.sandbox_id
            side.start_soon(parts.disks.fork, record.id, source, origin.generation.id, sandbox.spec.limits.disk)
        else:
            side.start_soon(parts.disks.create, record.id, sandbox.spec.template, sandbox.spec.limits.disk)
        await machine.connect(parts, record, entry, undos, blocked=origin is not None)
    async with together() as side:
        side.start_soon(parts.disks.sync)  # the disk is there after a power cut, too; it takes less time than the boot
        booted = await machine.boot(parts, record, entry, undos, new_identity=origin is not None)
    if origin:
        came = receipts.Came("fork", origin.snapshot.sandbox_id, origin.generation.id)
        booted = await receipts.admit(parts, booted, came, entry)
    booted = await sessions.first_point(parts, booted, entry, undos)
    return replace(booted, reason="forked" if origin else "created")


def check_possible(parts: Parts, sandbox: SandboxOnNode) -> None:
    """Raises Unsupported, NotFound: before anything was made."""
    spec = sandbox.spec
    runtime = parts.runtime(spec.runtime)
    if spec.persistence not in runtime.capabilities.persistence:
        reason = runtime.capabilities.unsupported.get(spec.persistence, "this runtime cannot do it")
        raise Unsupported(
            f"persistence={spec.persistence} is not possible on {spec.runtime}: {reason}",
            hint="sandkeep runtimes shows what each runtime can do",
            field="persistence",
        )
    if spec.template and spec.template not in parts.records.templates:  # what was imported has none here
        raise NotFound(f"template {spec.template_name} is not on this node", hint="sandkeep template list")


async def start(
    parts: Parts,
    record: Record,
    entry: Entry,
    undos: Undos,
    came: receipts.Came | None = None,
) -> Record:
    """A new machine on the disk that was kept. `came`: it is another moment's, and is checked before it is let into the
    world."""
    record = machine.next_machine(parts, record, undos)
    entry.step("start", machine=record.machine, slot=record.slot)
    await machine.connect(parts, record, entry, undos, blocked=came is not None)
    booted = await machine.boot(parts, record, entry, undos)
    if came:
        booted = await receipts.admit(parts, booted, came, entry)
    return replace(booted, reason="started from its disk")


async def stop(parts: Parts, record: Record, entry: Entry) -> Record:
    """End the machine. Paused on disk: the disk goes back to that moment, and the memory is dropped by the caller."""
    if record.phase is Phase.PAUSED and record.hold is Hold.DISK and record.generation:
        entry.step("disk.restore", generation=record.generation.id)
        await parts.disks.restore(record.id, record.generation.id)
        return replace(
            record, phase=Phase.STOPPED, hold=None, generation=None, reason="stopped; its memory was dropped"
        )
    if record.phase is Phase.RUNNING:
        entry.step("guest.flush")
        await machine.flush(parts, record)
    entry.step("machine.end")
    record = await machine.end(parts, record)
    entry.step("disk.sync")
    await parts.disks.sync()
    stopped = replace(record, phase=Phase.STOPPED, hold=None, reason="stopped", exited=0)
    return stopped.without_condition(ConditionKind.MEMORY_LOST)


def ended(record: Record, what: str, now: float, *, said: bool = False) -> Record:
    """Stopped, and nobody had asked for it; `what`: how its machine went. One that was held in memory did not have to
    run, so that its end is none that anything follows from. `said`: in a condition, also where no memory was promised."""
    held = record.phase is Phase.PAUSED
    promised = said or held or record.spec.persistence is Persistence.FULL
    reason = f"{what}; {'its memory was lost, ' if promised else ''}the disk was kept"
    if promised:
        record = record.with_condition(ConditionKind.MEMORY_LOST, True, reason, now)
    return replace(
        record, phase=Phase.STOPPED, hold=None, generation=None, reason=reason, exited=0 if held else record.boots
    )


async def stop_instead_of_pause(parts: Parts, record: Record, entry: Entry, why: SandkeepError) -> Record:
    stopped = await stop(parts, record, entry)
    said = f"its memory could not be saved ({why.message}); the disk was kept"
    noted = stopped.with_condition(ConditionKind.MEMORY_SAVABLE, False, why.message, parts.clock.now())
    return replace(noted, reason=f"stopped instead of paused: {said}")


async def erase(parts: Parts, record: Record) -> None:
    """All that is left of a sandbox but its tombstone; idempotent, repeated until it succeeds."""
    async with together() as side:
        side.start_soon(run_sync, parts.deletions.add, record.id)
        await machine.end(parts, record)
        await parts.disks.delete(record.id)
    if record.archive:
        await parts.vault.erase(record.id)


def check_update(record: Record, disk: int) -> None:
    if disk < record.spec.limits.disk:
        raise InvalidArgument("a disk cannot shrink", hint="create a smaller sandbox and copy the files", field="disk")


def vanishes(record: Record) -> bool:
    """Whether the rule its owner set removes it when its machine ends."""
    return record.spec.persistence is Persistence.EPHEMERAL
