"""What the pool holds and no record names: listed with all that is known of it, brought back or removed, only on request.

Asked by the supervisor for its callers; recovery only says what there is. `busy`: whether an operation on a sandbox is
under way, whose half-made things are nobody's business.
"""

import secrets
from collections.abc import Callable
from contextlib import suppress

from anyio.to_thread import run_sync

from sandkeep.contracts.disks import PoolContents
from sandkeep.domain.errors import Conflict, NotFound, SandkeepError
from sandkeep.domain.ids import IdKind, is_id
from sandkeep.domain.node import OperationRef, Quarantined, SandboxOnNode
from sandkeep.domain.sandbox import ConditionKind, Phase
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Record

_FRESH_BOOTS = 100_000
"""Machines of a sandbox that lost its record are numbered from here on: an id of a machine is not used twice."""


Busy = Callable[[str], bool]


async def quarantined(parts: Parts, busy: Busy) -> list[Quarantined]:
    contents = await parts.disks.contents()
    found = [await _disk(parts, contents, disk) for disk in sorted(_disks(parts, contents, busy))]
    loose = _loose(parts, contents, busy)
    found += [Quarantined(generation, "generation", owner=owner) for generation, owner in sorted(loose.items())]
    found += [Quarantined(template, "template") for template in sorted(_templates(parts, contents))]
    return found + [Quarantined(name, "snapshot record") for name in sorted(_snapshot_records(parts))]


async def restore(parts: Parts, operation: OperationRef, sandbox: SandboxOnNode) -> Record:
    """The new record, not yet saved. Raises NotFound."""
    contents = await parts.disks.contents()
    if sandbox.id not in _disks(parts, contents, lambda _: False):  # its lane is ours
        raise NotFound(f"no disk {sandbox.id} is in quarantine", hint="sandkeep node quarantine list")
    if sandbox.id not in contents.disks:
        generations = sorted(g for g, owner in contents.generations.items() if owner == sandbox.id)
        newest = max(generations, key=lambda g: parts.disks.memory_folder(sandbox.id, g).parent.stat().st_mtime)
        await parts.disks.restore(sandbox.id, newest)
    await parts.disks.set_limit(sandbox.id, sandbox.spec.limits.disk)
    await parts.disks.sync()
    record = Record(
        sandbox=sandbox,
        epoch=operation.epoch,
        slot=0,
        token=secrets.token_urlsafe(32),
        phase=Phase.STOPPED,
        reason="its record was lost; restored from its disk",
        boots=_FRESH_BOOTS,
    )
    return record.with_condition(ConditionKind.DISK_READY, True, "restored from quarantine", parts.clock.now())


async def delete(parts: Parts, quarantined_id: str, busy: Busy) -> None:
    """Raises NotFound, Conflict."""
    contents = await parts.disks.contents()
    if quarantined_id in _disks(parts, contents, busy):
        await erase(parts, quarantined_id)
    elif quarantined_id in _loose(parts, contents, busy):
        await parts.disks.drop_generation(contents.generations[quarantined_id], quarantined_id)
    elif quarantined_id in _templates(parts, contents):
        await parts.disks.delete_template(quarantined_id)
        parts.records.resolve_unreadable(quarantined_id, forget=True)
    elif quarantined_id in _snapshot_records(parts):
        parts.records.resolve_unreadable(quarantined_id, forget=True)
    elif quarantined_id in parts.records.sandboxes or quarantined_id in parts.records.templates:
        raise Conflict(f"{quarantined_id} has a record: it is not in quarantine", hint="sandkeep delete")
    else:
        raise NotFound(f"{quarantined_id[:64]!r} is not in quarantine", hint="sandkeep node quarantine list")


async def erase(parts: Parts, sandbox_id: str) -> None:
    """All of a sandbox that has no record: somebody deleted it by its id. Idempotent."""
    if not is_id(sandbox_id, IdKind.SANDBOX):
        return
    await run_sync(parts.deletions.add, sandbox_id)
    await parts.disks.delete(sandbox_id)
    await parts.disks.sync()
    for kept in parts.records.snapshots_of(sandbox_id):
        parts.records.remove_snapshot(kept.snapshot.id)
    parts.records.resolve_unreadable(sandbox_id, forget=True)
    with suppress(SandkeepError):  # whether there is an archive of it nobody knows any more
        await parts.vault.erase(sandbox_id)


def _disks(parts: Parts, contents: PoolContents, busy: Busy) -> set[str]:
    """Sandboxes without a record whose disk, or at least a whole moment of it, is there."""
    there = contents.disks.keys() | set(contents.generations.values())
    return {sandbox_id for sandbox_id in there - parts.records.sandboxes.keys() if not busy(sandbox_id)}


def _templates(parts: Parts, contents: PoolContents) -> set[str]:
    parts.records.find_templates()  # setup may have made one beside us
    return set(contents.templates - parts.records.templates.keys())


def _snapshot_records(parts: Parts) -> list[str]:
    """Those that cannot be read."""
    return [name for name in parts.records.unreadable if is_id(name, IdKind.SNAPSHOT)]


def _loose(parts: Parts, contents: PoolContents, busy: Busy) -> dict[str, str]:
    """Generations of sandboxes that have a record, which does not name them."""
    known = parts.records.sandboxes
    kept = parts.records.generations()
    return {g: o for g, o in contents.generations.items() if o in known and g not in kept and not busy(o)}


async def _disk(parts: Parts, contents: PoolContents, sandbox_id: str) -> Quarantined:
    facts = await parts.disks.facts(sandbox_id)
    return Quarantined(
        sandbox_id,
        "disk",
        size=await parts.disks.used(sandbox_id),
        changed_at=facts.changed_at,
        template=facts.template,
        limit=facts.limit,
        generations=tuple(sorted(g for g, owner in contents.generations.items() if owner == sandbox_id)),
    )
