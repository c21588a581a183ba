"""Which agent a sandbox's machine was booted with, and which agents are still needed. Called by recovery and resume.

The folders lie side by side, each named after its content. A memory image goes on executing the very file that it was
saved with: so a record names the agent of its machine or generation, and that one stays until no record does.
"""

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from anyio.to_thread import run_sync

from sandkeep.domain.errors import SandkeepError, Unsupported
from sandkeep.domain.sandbox import Phase
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Generation, Kept, Record
from sandkeep.telemetry.log import log


def needs_agent(record: Record) -> bool:
    """Not one that is being deleted: recovery has ended its machine, and nobody resumes it."""
    return record.phase is not Phase.DELETED and (record.machine is not None or memory_of(record) is not None)


def memory_of(record: Record) -> Generation | None:
    """Here, or in its archive."""
    archived = record.archive if record.phase is Phase.ARCHIVED else None
    return archived.memory if archived else record.generation


def check_kept(parts: Parts, record: Record) -> None:
    """Raises Unsupported when the agent that the record names is gone: its memory image fits no other."""
    if not (parts.agent_folder(record) / "agent").exists():
        raise Unsupported(
            "the agent that this memory was saved with is no longer installed",
            hint="start it from its disk: sandkeep start NAME",
            agent=record.agent,
        )


def name_agents(parts: Parts, mounted: dict[str, str]) -> None:
    """Records of versions that did not name agents. mounted: machine id -> agent, of those that live; a generation has
    the newest one that was installed when it was made."""
    for record in list(parts.records.sandboxes.values()):
        if record.agent or not needs_agent(record):
            continue
        agent = mounted.get(record.machine or "", "")
        if not agent and record.generation:
            agent = _installed_at(parts.settings.agent_folder, record.generation.created_at)
        if agent:
            with suppress(SandkeepError):  # a full disk holds up no start; without a name, nothing is removed
                parts.records.save(replace(record, agent=agent))


def _installed_at(current: Path, moment: float) -> str:
    times = {path.parent.name: path.stat().st_mtime for path in current.parent.glob("*/agent")}
    before = {name: time for name, time in times.items() if time <= moment}
    return max(before, key=before.__getitem__) if before else current.name


async def sweep(parts: Parts) -> None:
    """Remove what no record needs: agents, and the runtimes' builds. While there are records that cannot be read, nobody
    knows what they need, and all stays."""
    records = [record for record in parts.records.sandboxes.values() if needs_agent(record)]
    snapshots = [kept for kept in parts.records.snapshots.values() if kept.generation.files]
    if parts.records.unreadable or not all([r.agent for r in records] + [kept.agent for kept in snapshots]):
        return
    try:
        await _remove_unneeded(parts, records, snapshots)
    except OSError as error:
        log("task.failed", "error", task="agents.sweep", error=repr(error))


async def _remove_unneeded(parts: Parts, records: list[Record], snapshots: list[Kept]) -> None:
    needed = {record.agent for record in records} | {kept.agent for kept in snapshots}
    images = [memory.requires for record in records if (memory := memory_of(record))]
    images += [kept.generation.requires for kept in snapshots]
    for runtime in parts.runtimes.values():
        if runtime.capabilities.available:
            await runtime.keep_builds(images)
    current = parts.settings.agent_folder
    for path in sorted(current.parent.glob("*")):  # also one that was half removed
        if path.name not in {*needed, current.name}:
            log("agent.removed", agent=path.name)
            await run_sync(shutil.rmtree, path)
