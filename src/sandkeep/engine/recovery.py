"""After a restart: finish or undo what was interrupted, adopt what lives, end what has no owner, quarantine what has none.

The record decides. An operation whose record was made durable is finished; one whose record was not is undone. A machine
without a record is killed; a disk or memory image without one is kept and reported. Running it twice changes nothing.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import anyio

from sandkeep.domain.errors import NotFound, SandkeepError
from sandkeep.domain.ids import IdKind, body, is_id
from sandkeep.domain.node import FactKind
from sandkeep.domain.sandbox import Hold, Persistence, Phase
from sandkeep.domain.snapshot import Cause
from sandkeep.engine import agents, archiving, lifecycle, machine, moments, sessions, snapshots
from sandkeep.engine.admission import holds_memory
from sandkeep.engine.journal import Interrupted
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Record
from sandkeep.telemetry.log import log

_ANSWER = 5.0


async def recover(parts: Parts) -> None:
    await parts.disks.open()
    await parts.networks.open()
    for runtime in parts.runtimes.values():
        await runtime.open()
    parts.records.discard_unfinished()
    parts.records.load()
    parts.records.set_aside()
    parts.deletions.open()
    parts.feed.open()
    interrupted = parts.journal.interrupted()
    records = parts.records.sandboxes
    parts.slots.open({r.slot for r in records.values() if r.slot})
    removed = await parts.disks.discard_partial()
    for item in interrupted:
        await _settle(parts, item)
    await _set_limits(parts)
    if interrupted:
        await parts.disks.sync()  # what was undone stays undone, whatever comes before the next commit of the pool
    for item in interrupted:
        parts.journal.forget(item.operation)
    _hold_to_deletions(parts)
    alive = await _end_strangers(parts, _nobody)
    agents.name_agents(parts, await _mounted_agents(parts))
    for record in list(records.values()):
        if record.phase is not Phase.DELETED:
            await _adopt(parts, record, alive.get(record.machine or ""))
    await _detach_strangers(parts, _nobody)
    await _repair_rules(parts)
    await _quarantine(parts)
    await agents.sweep(parts)
    log("recovery.done", interrupted=len(interrupted), partials=len(removed), sandboxes=len(records))


async def mend(parts: Parts, busy: Callable[[str], bool]) -> None:
    """The part of it that can be done while the node serves: machines and networks that nothing owns. `busy`: whether
    an operation on the sandbox with this id is under way; what it makes has no record yet."""
    await _end_strangers(parts, busy)
    await _detach_strangers(parts, busy)


def _nobody(_: str) -> bool:
    return False


def _hold_to_deletions(parts: Parts) -> None:
    """A record from a backup does not bring back what was deleted since."""
    alive = [record.id for record in parts.records.sandboxes.values() if record.phase is not Phase.DELETED]
    for sandbox_id in parts.deletions.among(alive):
        record = parts.records.sandboxes[sandbox_id]
        log("recovery.step", verb="delete", subject=sandbox_id, steps=[])
        parts.records.save(replace(record, phase=Phase.DELETED, reason="deleted"))


async def _settle(parts: Parts, item: Interrupted) -> None:
    log("recovery.step", verb=item.verb, subject=item.subject, steps=list(item.steps))
    if item.verb == "make_template":
        if item.subject not in parts.records.templates:
            await parts.disks.delete_template(item.subject)
        return
    if item.verb == "delete_template":
        if item.subject not in parts.records.templates:
            await parts.disks.delete_template(item.subject)
        return
    unknown = item.subject not in parts.records.sandboxes and item.subject not in parts.records.unreadable
    if unknown and item.verb in ("create", "import"):
        # Never acknowledged. Its machine and network are ended as strangers; its disk is ours to remove.
        await _kill_machines_of(parts, item.subject)
        await parts.disks.delete(item.subject)
    record = parts.records.sandboxes.get(item.subject)
    if record is None:
        return
    await _drop_unrecorded_generations(parts, record)
    if item.verb == "rollback" and await _finish_rollback(parts, record, item):
        return
    done = item.operation in record.outcomes and record.outcomes[item.operation] is None  # and its new machine runs on
    if "machine.end" in item.steps and not done and holds_memory(record) and not lifecycle.vanishes(record):
        await _finish_stop(parts, record)
    if item.verb == "update" and record.phase is not Phase.DELETED:
        # Done if its record was written, undone if not: disk (see _set_limits) and machine follow the record either way.
        await machine.apply_limits(parts, record)


async def _finish_stop(parts: Parts, record: Record) -> None:
    """Its machine was being ended, or is: what ran cannot be brought back, so what was begun is done. It did not end by
    itself, and no rule for that applies."""
    before = record
    record = await machine.end(parts, record)
    await parts.disks.sync()
    stopped = replace(record, phase=Phase.STOPPED, hold=None, reason="stopped", exited=0)
    stopped = await moments.keep(parts, stopped, Cause.EXIT)
    parts.records.save(await sessions.close(parts, stopped))
    if before.point and not parts.records.needed(before.point.id):
        await parts.disks.drop_generation(record.id, before.point.id)


async def _finish_rollback(parts: Parts, record: Record, item: Interrupted) -> bool:
    """Once its machine was being ended the way leads forward: it is stopped on the snapshot's disk, and if it ran, its rule for
    failures starts it again. Whether that was done."""
    kept = parts.records.snapshots.get(item.facts.get("snapshot", ""))
    if kept is None or item.operation in record.outcomes or "machine.end" not in item.steps:
        return False
    if record.phase is Phase.DELETED:
        return False
    ended = await machine.end(parts, record)
    memory = bool(item.facts.get("memory"))
    restored = snapshots.paused_at(ended, kept) if memory else await snapshots.restore(parts, ended, kept)
    if record.phase is Phase.RUNNING and not memory:
        reason = f"{restored.reason}; its start was interrupted"
        restored = replace(restored, exited=record.boots, reason=reason)
    parts.records.save(restored)
    if record.generation and not parts.records.needed(record.generation.id):
        await parts.disks.drop_generation(record.id, record.generation.id)
    return True


async def _drop_unrecorded_generations(parts: Parts, record: Record) -> None:
    """A pause that did not reach its record leaves a generation that nobody was told of; a power cut brings back one that
    was dropped after its resume."""
    if any(is_id(name, IdKind.SNAPSHOT) for name in parts.records.unreadable):
        return  # it may be what holds a snapshot: it stays, and is said to be in quarantine
    kept = parts.records.generations()
    for generation, owner in (await parts.disks.contents()).generations.items():
        if owner == record.id and generation not in kept:
            await parts.disks.drop_generation(record.id, generation)


async def _set_limits(parts: Parts) -> None:
    """The record says how much a disk may hold: a crash can have come between the limit and the record."""
    for record in parts.records.sandboxes.values():
        if record.phase is not Phase.DELETED:
            with suppress(NotFound):
                await parts.disks.set_limit(record.id, record.disk_limit)


async def _kill_machines_of(parts: Parts, sandbox_id: str) -> None:
    for runtime in parts.runtimes.values():
        for state in await runtime.machines():
            if f"-{body(sandbox_id)}-" in state.id:
                await runtime.kill(state.id)


async def _end_strangers(parts: Parts, busy: Callable[[str], bool]) -> dict[str, bool]:
    """Kill every machine that no record names. Returns machine id -> frozen of those that stay."""
    alive: dict[str, bool] = {}
    for runtime in parts.runtimes.values():
        for state in await runtime.machines():
            # After the look, so that a machine whose record was written meanwhile is known.
            wanted = {r.machine for r in parts.records.sandboxes.values() if r.machine and r.phase is not Phase.DELETED}
            if state.id in wanted and state.pids:
                alive[state.id] = state.frozen
            elif not busy(_sandbox_of(state.id)):
                log("machine.killed", machine=state.id, why="no record names it")
                with suppress(SandkeepError):
                    await runtime.kill(state.id)
    return alive


async def _mounted_agents(parts: Parts) -> dict[str, str]:
    return {s.id: s.agent for runtime in parts.runtimes.values() for s in await runtime.machines() if s.pids}


async def _adopt(parts: Parts, record: Record, frozen: bool | None) -> None:
    """`frozen`: None when its machine is not alive."""
    if (
        record.phase is Phase.ARCHIVED
    ):  # verified before its record was written, and what an interrupted wake made is none
        await archiving.drop(parts, record)
        return
    if record.phase is Phase.PAUSED and record.hold is Hold.DISK:
        if record.machine or record.slot:  # the crash came after the record and before the machine was ended
            parts.records.save(await machine.end(parts, record))
        return
    if not record.machine:
        return
    if frozen is None:
        await _machine_lost(parts, record)
        return
    attachment = parts.networks.describe(record.id, record.slot, record.spec.network)
    await parts.networks.attach(record.id, record.slot, record.spec.network)
    await parts.networks.unblock(attachment)  # the pause that closed it did not happen
    runtime = parts.runtime(record.spec.runtime)
    if record.phase is Phase.RUNNING:
        if frozen:
            await runtime.thaw(record.machine)
        if record.generation:  # resumed, and the crash came before the generation was dropped
            await parts.disks.sync()
            generation = record.generation.id
            parts.records.save(replace(record, generation=None))
            if not parts.records.needed(generation):
                await parts.disks.drop_generation(record.id, generation)
    elif not frozen:
        await runtime.freeze(record.machine)
    log("machine.adopted", sandbox=record.id, machine=record.machine)


async def _machine_lost(parts: Parts, record: Record) -> None:
    """It ran (or was held in memory) and is gone: the host restarted, or it was killed while nobody looked."""
    what = "its machine was gone when the node came back"
    record = await machine.end(parts, record)
    deleted = record.spec.persistence is Persistence.EPHEMERAL
    if deleted:
        parts.records.save(replace(record, phase=Phase.DELETED, reason=what))
    else:
        if record.generation and not parts.records.needed(record.generation.id, but=record.id):
            await parts.disks.drop_generation(record.id, record.generation.id)
        ended = lifecycle.ended(record, what, parts.clock.now(), said=True)
        parts.records.save(await moments.keep(parts, ended, Cause.CRASH))
    parts.feed.tell(FactKind.MACHINE_EXITED, record.id, record.epoch, reason=what, deleted=deleted)


def _sandbox_of(machine_id: str) -> str:
    return f"{IdKind.SANDBOX}_{machine_id.split('-')[-2]}" if machine_id.count("-") >= 2 else ""


async def _detach_strangers(parts: Parts, busy: Callable[[str], bool]) -> None:
    for slot, name in (await parts.networks.attached()).items():
        sandbox_id = f"{IdKind.SANDBOX}_{name}" if name else ""
        if not parts.slots.is_leased(slot) and not busy(sandbox_id):
            await parts.networks.detach(sandbox_id, slot)


async def _repair_rules(parts: Parts) -> None:
    attachments = [
        parts.networks.describe(r.id, r.slot, r.spec.network) for r in parts.records.sandboxes.values() if r.slot
    ]
    with anyio.move_on_after(_ANSWER):
        repaired = await parts.networks.repair(attachments)
        if repaired:
            log("network.repaired", count=repaired)


async def _quarantine(parts: Parts) -> None:
    """What the pool holds and no record knows: kept, and said."""
    contents = await parts.disks.contents()
    known = parts.records.sandboxes
    strangers = sorted(set(contents.disks) - set(known))
    deleted = parts.deletions.among(strangers)
    for disk in strangers:
        if disk in deleted:
            await parts.disks.delete(disk)
            continue
        log("disk.quarantined", disk=disk)
        parts.feed.tell(FactKind.QUARANTINED, disk, None, what="disk")
    kept = parts.records.generations()
    for generation, owner in contents.generations.items():
        record = known.get(owner)
        if record and generation in kept:
            continue
        if record is None:
            parts.feed.tell(FactKind.QUARANTINED, owner, None, what="generation", generation=generation)
