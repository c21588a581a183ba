"""Snapshots that the node makes by itself, since a sandbox's timeline asks for one when its machine ends, or memory ran out.

Made here and not when the server hears of it: before anybody can start the sandbox again, and also without a server, which takes
them over like every snapshot that the node alone knows. One that cannot be made keeps nothing else from being done.
"""

from dataclasses import replace

from anyio.abc import TaskGroup

from sandkeep.domain.errors import QuotaExceeded, SandkeepError
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import SnapshotOnNode
from sandkeep.domain.sandbox import DEADLINES, Phase
from sandkeep.domain.snapshot import MOST, Cause, SnapshotKind
from sandkeep.engine import lifecycle, machine, snapshots
from sandkeep.engine.journal import Entry
from sandkeep.engine.lanes import Lanes
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Record
from sandkeep.engine.undo import Undos
from sandkeep.telemetry.log import log

_APART = 60.0
"""Seconds between two that the guest itself can bring about: who is root inside can run out of memory at will."""

_REASON = {
    Cause.EXIT: "when it stopped",
    Cause.OUT_OF_MEMORY: "when it ran out of memory",
    Cause.CRASH: "when its machine ended by itself",
}


async def changed(parts: Parts, record: Record) -> bool:
    """Whether its disk may hold anything that the snapshot it came from last does not."""
    kept = parts.records.snapshots.get(record.head)
    if kept is None or not kept.here:
        return True
    if record.phase is Phase.RUNNING:
        await machine.flush(parts, record)
    return await parts.disks.changed(record.id, kept.generation.id)


async def keep(parts: Parts, record: Record, cause: Cause, entry: Entry | None = None) -> Record:
    """In the sandbox's lane; its record is the caller's to save. `entry`: of the operation under way, if there is one."""
    if not record.spec.timeline.wants(cause) or lifecycle.vanishes(record):
        return record
    try:
        if _too_soon(parts, record, cause) or not await changed(parts, record):
            return record
        return await _make(parts, record, cause, entry)
    except SandkeepError as error:
        log("timeline.failed", "warning", sandbox=record.id, cause=cause, error=error.message)
        return record


def _too_soon(parts: Parts, record: Record, cause: Cause) -> bool:
    if cause is Cause.EXIT:
        return False
    now = parts.clock.now()
    before = [kept.snapshot for kept in parts.records.snapshots_of(record.id) if kept.snapshot.cause is cause]
    return any(abs(now - one.created_at) < _APART for one in before)


async def _make(parts: Parts, record: Record, cause: Cause, entry: Entry | None) -> Record:
    if len(parts.records.snapshots_of(record.id)) >= MOST:
        raise QuotaExceeded(f"the sandbox has {MOST} snapshots")
    wanted = SnapshotOnNode(
        new_id(IdKind.SNAPSHOT),
        record.id,
        SnapshotKind.DISK,
        parts.clock.now(),
        reason=_REASON[cause],
        cause=cause,
    )
    own = entry or parts.journal.begin(new_id(IdKind.OPERATION), "snapshot", record.id)
    try:
        async with Undos() as undos:
            return await snapshots.make(parts, record, wanted, own, undos)
    finally:
        if entry is None:
            own.close()


class Kills:
    """Out-of-memory kills of processes in machines that live on."""

    def __init__(self, parts: Parts, lanes: Lanes) -> None:
        self._parts = parts
        self._lanes = lanes
        self._tasks: TaskGroup | None = None

    def begin(self, tasks: TaskGroup) -> None:
        self._tasks = tasks

    def told(self, record: Record) -> None:
        """Keeps this moment of it, in the background, if its timeline asks for that."""
        if self._tasks is not None and record.spec.timeline.wants(Cause.OUT_OF_MEMORY):
            self._tasks.start_soon(self._keep, record.id)

    async def _keep(self, sandbox_id: str) -> None:
        try:
            async with self._lanes.operate(sandbox_id, None, DEADLINES[Phase.NEW]):
                record = self._parts.records.sandboxes.get(sandbox_id)
                if record is None or record.phase is not Phase.RUNNING:
                    return  # its end is a moment of its own
                after = await keep(self._parts, record, Cause.OUT_OF_MEMORY)
                if after != record:
                    self._parts.records.save(replace(record, head=after.head))
        except SandkeepError as error:
            log("timeline.failed", "warning", sandbox=sandbox_id, cause=Cause.OUT_OF_MEMORY, error=error.message)
