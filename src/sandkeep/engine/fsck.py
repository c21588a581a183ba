"""Records against the kernel and the pool: what is there without an owner, and what is owned but not there.

It enumerates the world, not the journal's memory, and so runs also while both daemons are dead.
"""

from typing import Any

from sandkeep.domain.errors import SandkeepError
from sandkeep.domain.sandbox import Hold, Phase
from sandkeep.engine import passing
from sandkeep.engine.admission import holds_memory
from sandkeep.engine.hibernation import check_fits
from sandkeep.engine.parts import Parts


async def check(parts: Parts) -> dict[str, Any]:
    """{'findings': [{kind, subject, detail}], 'counts': {...}}; no findings: all is well."""
    findings: list[dict[str, str]] = []

    def found(kind: str, subject: str, detail: str) -> None:
        findings.append({"kind": kind, "subject": subject, "detail": detail})

    records = parts.records.sandboxes
    machines: dict[str, str] = {}
    for kind, runtime in parts.runtimes.items():
        if not runtime.capabilities.available:
            continue
        for state in await runtime.machines():
            machines[state.id] = kind
            if not state.pids:
                found("machine.dead", state.id, "the runtime keeps state of a machine without processes")
    wanted = {r.machine: r for r in records.values() if r.machine}  # a tombstone's may be on its way out
    for machine_id in machines.keys() - wanted.keys():
        found("machine.unowned", machine_id, "a machine that no record names")
    for machine_id, record in wanted.items():
        if machine_id not in machines and holds_memory(record):
            found("machine.missing", record.id, f"the record says {record.phase} and there is no machine")

    contents = await parts.disks.contents()
    for disk in contents.disks.keys() - records.keys():
        found("disk.unowned", disk, "a disk without a record: quarantined")
    for sandbox_id in records.keys() - contents.disks.keys():
        if records[sandbox_id].phase not in (Phase.DELETED, Phase.ARCHIVED):
            found("disk.missing", sandbox_id, "the record has no disk in the pool")
    kept = parts.records.generations()
    read = {one.subject for one in parts.journal.entries() if one.verb in passing.VERBS}
    for generation in contents.generations.keys() - kept.keys():
        if contents.generations[generation] in read:
            continue  # it lives as long as that
        found("generation.unowned", generation, f"a moment of {contents.generations[generation]} without a record")
    for generation in kept.keys() - contents.generations.keys():
        owner = records.get(kept[generation])
        if owner and owner.phase is Phase.DELETED:
            continue  # its records go last
        found("generation.missing", kept[generation], f"its paused state or snapshot {generation} is not in the pool")
    for template in parts.records.templates.keys() - contents.templates:
        found("template.missing", template, "the record has no disk in the pool")
    for template in contents.templates - parts.records.templates.keys():
        found("template.unowned", template, "a template without a record")
    for name in contents.strangers:
        found("pool.stranger", name, "something in the pool that Sandkeep did not make, or a half-made thing")

    for snapshot_id, one in parts.records.snapshots.items():
        if one.snapshot.sandbox_id not in records:
            found("snapshot.unowned", snapshot_id, f"a snapshot of {one.snapshot.sandbox_id}, which has no record")

    slots = {r.slot: r.id for r in records.values() if r.slot and r.phase is not Phase.DELETED}
    attached = await parts.networks.attached()
    for slot in attached.keys() - slots.keys():
        found("network.unowned", str(slot), f"a network without a record ({attached[slot]})")
    for slot in slots.keys() - attached.keys():
        found("network.missing", slots[slot], f"its network (slot {slot}) is not there")

    for record in records.values():
        if record.phase is Phase.PAUSED and record.hold is Hold.DISK and not record.generation:
            found("record.torn", record.id, "paused on disk without a memory image")
        if record.phase is Phase.ARCHIVED and record.id in contents.disks:
            found("disk.archived", record.id, "it is archived, and its disk is still here")
        if record.generation and record.phase is not Phase.DELETED:
            try:
                check_fits(parts, record, record.generation)
            except SandkeepError as error:
                found("generation.unfitting", record.id, f"its memory image cannot be resumed here: {error.message}")
        if record.phase is Phase.DELETED and (record.id in contents.disks or record.machine in machines):
            found("record.tombstone", record.id, "deleted, and not yet erased")
    for name in parts.records.unreadable:
        found("record.unreadable", name, "the record cannot be read; what it describes is quarantined")
    return {
        "findings": sorted(findings, key=lambda f: (f["kind"], f["subject"])),
        "counts": {
            "sandboxes": sum(r.phase is not Phase.DELETED for r in records.values()),
            "machines": len(machines),
            "disks": len(contents.disks),
            "generations": len(contents.generations),
            "snapshots": len(parts.records.snapshots),
            "templates": len(contents.templates),
            "networks": len(attached),
        },
    }
