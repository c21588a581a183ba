"""Fulfils contracts.runner on one node: who may change what when. The frame of a change is in operations, its steps are in
lifecycle and hibernation, and what follows from a machine that ends by itself is in exits.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from sandkeep.contracts.runner import PROTOCOL_VERSION, NodeInfo
from sandkeep.domain.archive import Rehearsed
from sandkeep.domain.browse import Difference, FileAt, Point
from sandkeep.domain.errors import (
    Conflict,
    NotFound,
    PauseFailed,
    Unsupported,
)
from sandkeep.domain.node import (
    Capacity,
    Endpoint,
    Fact,
    Observed,
    OperationRef,
    Quarantined,
    SandboxOnNode,
    SnapshotOnNode,
    TemplateOnNode,
    Usage,
)
from sandkeep.domain.portable import Carried
from sandkeep.domain.receipt import Receipt
from sandkeep.domain.sandbox import DEADLINES, ConditionKind, Hold, Lifetime, Limits, Persistence, Phase
from sandkeep.domain.snapshot import Cause, SnapshotKind
from sandkeep.domain.timeline import SnapshotSizes, Timeline
from sandkeep.engine import (
    archived_snapshots,
    archiving,
    fsck,
    hibernation,
    lifecycle,
    machine,
    moments,
    quarantine,
    sessions,
    snapshots,
)
from sandkeep.engine.browse import Browser
from sandkeep.engine.exits import Exits
from sandkeep.engine.journal import Entry
from sandkeep.engine.lanes import Lanes
from sandkeep.engine.operations import Operations, replay
from sandkeep.engine.parts import Parts
from sandkeep.engine.portable import Porter
from sandkeep.engine.records import Kept, Record
from sandkeep.engine.recovery import mend, recover
from sandkeep.engine.rehearsals import Rehearsals
from sandkeep.engine.rescue import give_back, leave_or_stay, set_room
from sandkeep.engine.sizes import Sizes
from sandkeep.engine.templates import Templates
from sandkeep.engine.tombstones import Tombstones
from sandkeep.engine.undo import Undos
from sandkeep.engine.upkeep import Upkeep
from sandkeep.telemetry.log import log

_PROBE_EVERY = 2.0
_REMEMBERED_DELETES = 4096


class Supervisor:
    def __init__(self, parts: Parts, version: str) -> None:
        self._parts = parts
        self._version = version
        self._lanes = Lanes()
        self._started_at = parts.clock.now()
        self._tasks: TaskGroup | None = None
        self._tombstones = Tombstones(parts)
        self._exits = Exits(parts, self._lanes, self._tombstones)
        self._operations = Operations(parts, self._lanes, self._exits)
        self._kills = moments.Kills(parts, self._lanes)
        self._sizes = Sizes(parts)
        self._templates = Templates(parts, self._lanes, self._operations)
        self._rehearsals = Rehearsals(parts)
        self._browser = Browser(parts, self._lanes)
        self._probed: tuple[float, str] | None = None
        self._probing = anyio.Lock()
        self._deleted: dict[str, None] = {}
        self._porter = Porter(parts, self._lanes, self._operations, self._deleted)

    async def run(self, ready: Callable[[], None]) -> None:
        """Recover, then serve until cancelled. Sandboxes live on after it ends."""
        await recover(self._parts)
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            self._exits.begin(tasks)
            self._operations.begin(tasks)
            self._kills.begin(tasks)
            for record in list(self._parts.records.sandboxes.values()):
                if record.phase is Phase.DELETED:
                    tasks.start_soon(self._tombstones.erase, record)
                else:
                    self._exits.watch(record)
            tasks.start_soon(Upkeep(self._parts, self._kills.told).run)
            tasks.start_soon(self._sizes.run)
            tasks.start_soon(self._browser.readings.run)
            tasks.start_soon(self._tombstones.run)
            ready()
            try:
                await anyio.sleep_forever()
            finally:
                self._parts.feed.close()
                self._parts.deletions.close()

    # -- operations

    async def create(self, operation: OperationRef, sandbox: SandboxOnNode) -> Observed:
        return await self._make(operation, sandbox, None, False)

    async def fork(self, operation: OperationRef, sandbox: SandboxOnNode, snapshot_id: str, memory: bool) -> Observed:
        return await self._make(operation, sandbox, snapshot_id, memory)

    async def _make(
        self, operation: OperationRef, sandbox: SandboxOnNode, snapshot_id: str | None, memory: bool
    ) -> Observed:
        @asynccontextmanager
        async def admitted() -> AsyncIterator[None]:
            lifecycle.check_possible(self._parts, sandbox)
            self._origin(snapshot_id)
            async with self._parts.admitted(sandbox.id, sandbox.spec, new_disk=True):
                yield

        async def work(entry: Entry, undos: Undos) -> Record:
            origin = self._origin(snapshot_id)
            if origin and memory:
                return await snapshots.fork_memory(self._parts, operation, sandbox, origin, entry, undos)
            return await lifecycle.create(self._parts, operation, sandbox, entry, undos, origin)

        return await self._operations.make(
            operation, sandbox, "create", DEADLINES[Phase.STARTING], self._deleted, admitted(), work
        )

    def _origin(self, snapshot_id: str | None) -> Kept | None:
        """Raises NotFound; Conflict for one that is in the object store."""
        origin = self._parts.records.snapshots.get(snapshot_id or "")
        if snapshot_id and origin is None:
            raise NotFound(f"snapshot {snapshot_id} is not on this node")
        return archived_snapshots.check_here(self._parts, origin) if origin else None

    # -- to and from another installation

    def export_sandbox(self, sandbox_id: str, key: str) -> AsyncGenerator[bytes, None]:
        return self._porter.export(sandbox_id, key)

    async def look_portable(self, key: str, disk_only: bool, content: AsyncIterator[bytes]) -> Carried:
        return await self._porter.look(key, disk_only, content)

    async def import_sandbox(
        self,
        operation: OperationRef,
        sandbox: SandboxOnNode,
        key: str,
        disk_only: bool,
        content: AsyncIterator[bytes],
    ) -> Observed:
        return await self._porter.bring(operation, sandbox, key, disk_only, content)

    async def start(self, operation: OperationRef, sandbox_id: str, rescue: bool) -> Observed:
        async def work(record: Record, entry: Entry, undos: Undos) -> Record:
            if record.phase is Phase.RUNNING:
                return await leave_or_stay(self._parts, record, entry, rescue)
            if record.phase is Phase.PAUSED and record.hold is Hold.MEMORY:
                raise Conflict("it is paused in memory", hint="resume it")
            if record.generation:
                entry.step("disk.restore", generation=record.generation.id)
                await self._parts.disks.restore(record.id, record.generation.id)
            async with self._parts.admitted(record.id, record.spec, new_disk=False):
                record = await sessions.rewind(self._parts, record, entry)
                record = await set_room(self._parts, replace(record, generation=None), entry, undos, rescue)
                return await lifecycle.start(self._parts, record, entry, undos)

        return await self._operations.operate(operation, sandbox_id, "start", Phase.STARTING, work)

    async def stop(self, operation: OperationRef, sandbox_id: str) -> Observed:
        async def work(record: Record, entry: Entry, undos: Undos) -> Record:
            if record.phase is Phase.STOPPED:
                return replace(record, exited=0)
            self._exits.expect(record)
            stopped = await give_back(self._parts, await lifecycle.stop(self._parts, record, entry), entry)
            stopped = await moments.keep(self._parts, stopped, Cause.EXIT, entry)
            return await sessions.close(self._parts, stopped, entry)

        return await self._operations.operate(operation, sandbox_id, "stop", Phase.STOPPING, work)

    async def pause(self, operation: OperationRef, sandbox_id: str, hold: Hold, or_disk: bool) -> Observed:
        async def work(record: Record, entry: Entry, undos: Undos) -> Record:
            if record.phase is Phase.PAUSED and record.hold in (hold, Hold.DISK):
                return record
            kept = record
            if (
                record.phase is Phase.PAUSED
            ):  # its record goes on saying so: what fails or is interrupted is frozen again
                undos.push("freeze", lambda: hibernation.freeze_again(self._parts, kept))
                record = await hibernation.resume_in_memory(self._parts, record, entry)
            if record.phase is not Phase.RUNNING:
                raise Conflict(f"it is {record.phase}, not running", hint="start it first")
            capabilities = self._parts.runtime(record.spec.runtime).capabilities
            if hold not in capabilities.holds:
                raise Unsupported(
                    f"{record.spec.runtime} cannot pause with hold={hold}: {capabilities.unsupported.get('full', '')}",
                    hint="pause with hold=memory, or stop it",
                )
            if hold is Hold.MEMORY:
                return await hibernation.pause_in_memory(self._parts, record, entry)
            if record.spec.persistence is not Persistence.FULL:
                raise Unsupported(
                    f"pause to disk keeps memory, and persistence={record.spec.persistence} does not",
                    hint="pause with hold=memory, or stop it (the disk is kept)",
                )
            self._exits.expect(record)
            try:
                return await hibernation.pause_to_disk(self._parts, record, entry)
            except PauseFailed as error:
                if or_disk:
                    stopped = await lifecycle.stop_instead_of_pause(self._parts, record, entry, error)
                    return await moments.keep(self._parts, stopped, Cause.EXIT, entry)
                noted = kept.with_condition(ConditionKind.MEMORY_SAVABLE, False, error.message, self._parts.clock.now())
                self._parts.records.save(noted)
                raise

        return await self._operations.operate(operation, sandbox_id, "pause", Phase.PAUSING, work, hold=hold)

    async def resume(self, operation: OperationRef, sandbox_id: str) -> Observed:
        async def work(record: Record, entry: Entry, undos: Undos) -> Record:
            if record.phase is Phase.RUNNING:
                return record
            if record.phase is not Phase.PAUSED:
                raise Conflict(f"it is {record.phase}, not paused", hint="start it")
            if record.hold is Hold.MEMORY:
                return await hibernation.resume_in_memory(self._parts, record, entry)
            async with self._parts.admitted(record.id, record.spec, new_disk=False):
                return await hibernation.resume_from_disk(self._parts, record, entry, undos)

        return await self._operations.operate(operation, sandbox_id, "resume", Phase.RESUMING, work)

    async def archive(self, operation: OperationRef, sandbox_id: str) -> Observed:
        async def work(record: Record, entry: Entry, undos: Undos) -> Record:
            return await archiving.archive(self._parts, record, entry)

        return await self._operations.operate(operation, sandbox_id, "archive", Phase.ARCHIVING, work)

    async def wake(self, operation: OperationRef, sandbox_id: str, disk_only: bool) -> Observed:
        async def work(record: Record, entry: Entry, undos: Undos) -> Record:
            return await archiving.wake(self._parts, record, entry, undos, disk_only)

        return await self._operations.operate(operation, sandbox_id, "wake", Phase.WAKING, work)

    async def rehearse(self, sandbox_id: str, snapshot_id: str | None) -> Rehearsed:
        record = self._operations.known(sandbox_id)
        return await self._operations.detached(lambda: self._rehearsals.rehearse(record, snapshot_id))

    async def update(
        self, operation: OperationRef, sandbox_id: str, limits: Limits, lifetime: Lifetime, labels: dict[str, str]
    ) -> Observed:
        async def work(record: Record, entry: Entry, undos: Undos) -> Record:
            lifecycle.check_update(record, limits.disk)
            spec = replace(record.spec, limits=limits, lifetime=lifetime, labels=labels)
            if limits.disk != record.spec.limits.disk and record.phase is not Phase.ARCHIVED:
                entry.step("disk.limit")
                undos.push("disk.limit", lambda: self._parts.disks.set_limit(record.id, record.disk_limit))
                await self._parts.disks.set_limit(record.id, limits.disk + record.rescue)
            if record.machine and limits != record.spec.limits:
                entry.step("machine.limits")
                undos.push("machine.limits", lambda: machine.apply_limits(self._parts, record))
                await self._parts.runtime(record.spec.runtime).set_limits(record.machine, limits)
            changed = replace(record, sandbox=replace(record.sandbox, spec=spec))
            if record.phase is Phase.RUNNING and limits.memory != record.spec.limits.memory:
                entry.step("guest.init")
                await machine.introduce(self._parts, changed)  # its guard reckons with the limit
            return changed

        return await self._operations.operate(operation, sandbox_id, "update", None, work)

    async def delete(self, operation: OperationRef, sandbox_id: str) -> None:
        async def body() -> None:
            self._fence_deleted(sandbox_id)
            async with self._lanes.cut_in(sandbox_id):
                record = self._parts.records.sandboxes.get(sandbox_id)
                if record is None:  # its record was lost, or it never came to be: whoever names it wants nothing of it
                    await quarantine.erase(self._parts, sandbox_id)
                    self._lanes.forget(sandbox_id)
                    return
                self._operations.fence(operation, record)
                self._exits.expect(record)
                tombstone = self._parts.records.save(
                    replace(record, epoch=operation.epoch, phase=Phase.DELETED, reason="deleted")
                )
                # From here on the deletion is durable: what does not go at once goes later.
                with anyio.move_on_after(10) as scope:
                    if await self._tombstones.try_erase(tombstone):
                        self._lanes.forget(sandbox_id)
                        return
                log("undo.failed", what="delete", sandbox=sandbox_id, timeout=scope.cancelled_caught)
                assert self._tasks is not None
                self._tasks.start_soon(self._tombstones.erase, tombstone)

        await self._operations.detached(body)

    def _fence_deleted(self, sandbox_id: str) -> None:
        """A create that a delete overtook on its way here must make nothing. Ids are never used twice; only calls that
        are under way can come late, so the last ones are enough, and a restart has no such calls."""
        self._deleted[sandbox_id] = None
        if len(self._deleted) > _REMEMBERED_DELETES:
            del self._deleted[next(iter(self._deleted))]

    # -- looking

    async def handshake(self) -> NodeInfo:
        return NodeInfo(
            node_id=self._parts.settings.node_id,
            protocol=PROTOCOL_VERSION,
            version=self._version,
            started_at=self._started_at,
            runtimes=tuple(runtime.capabilities for runtime in self._parts.runtimes.values()),
            disks=self._parts.disks.capabilities,
            installation=self._parts.records.installation,
        )

    async def pair(self, installation: str) -> None:
        await run_sync(self._parts.records.save_installation, installation)
        log("node.paired", installation=installation)

    async def capacity(self) -> Capacity:
        return await self._parts.capacity()

    async def storage(self) -> str:
        async with self._probing:  # two at once would take each other's file for a fault of the disk
            now = self._parts.clock.monotonic()
            if self._probed is None or now - self._probed[0] > _PROBE_EVERY:
                self._probed = now, await run_sync(self._parts.records.trouble)
            return self._probed[1]

    async def show(self, sandbox_id: str) -> Observed | None:
        record = self._parts.records.sandboxes.get(sandbox_id)
        if record is None:
            deleted = await run_sync(self._parts.deletions.among, [sandbox_id])
            return Observed(sandbox_id, 0, Phase.DELETED, reason="deleted") if deleted else None
        observed = record.observed()
        phase = self._lanes.phase(sandbox_id)
        return replace(observed, phase=phase) if phase else observed

    async def sandboxes(self) -> list[Observed]:
        found = [await self.show(sandbox_id) for sandbox_id in list(self._parts.records.sandboxes)]
        return [observed for observed in found if observed]

    async def receipt(self, sandbox_id: str) -> Receipt | None:
        return self._operations.known(sandbox_id).receipt

    async def export_record(self, sandbox_id: str) -> SandboxOnNode | None:
        record = self._parts.records.sandboxes.get(sandbox_id)
        return record.sandbox if record and record.phase is not Phase.DELETED else None

    # -- quarantine

    async def quarantined(self) -> list[Quarantined]:
        return await quarantine.quarantined(self._parts, self._lanes.busy)

    async def restore_quarantined(self, operation: OperationRef, sandbox: SandboxOnNode) -> Observed:
        async def body() -> Observed:
            async with self._lanes.operate(sandbox.id, None, DEADLINES[Phase.STARTING]):
                existing = self._parts.records.sandboxes.get(sandbox.id)
                if existing is not None:
                    self._operations.fence(operation, existing)
                    if operation.id in existing.outcomes:
                        return replay(existing, operation.id)
                    raise Conflict(f"sandbox {sandbox.id} has a record: it is not in quarantine")
                record = await quarantine.restore(self._parts, operation, sandbox)
                record = self._parts.records.save(record.with_outcome(operation.id, None))
                self._parts.records.resolve_unreadable(sandbox.id, forget=False)
                return record.observed()

        return await self._operations.detached(body)

    async def delete_quarantined(self, operation: OperationRef, quarantined_id: str) -> None:
        async def body() -> None:
            await quarantine.delete(self._parts, quarantined_id, self._lanes.busy)

        await self._operations.detached(body)

    async def endpoint(self, sandbox_id: str) -> Endpoint:
        record = self._operations.known(sandbox_id)
        if record.phase is not Phase.RUNNING or not record.machine:
            raise Conflict(f"sandbox {sandbox_id} is {record.phase}, not running")
        return self._parts.endpoint(record)

    async def usage(self, sandbox_ids: list[str] | None) -> list[Usage]:
        found = []
        for sandbox_id in sandbox_ids if sandbox_ids is not None else list(self._parts.records.sandboxes):
            record = self._parts.records.sandboxes.get(sandbox_id)
            if record is None or record.phase is Phase.DELETED:
                continue
            live = None
            if record.machine:
                live = await self._parts.runtime(record.spec.runtime).usage(record.machine)
            found.append(
                Usage(
                    sandbox_id,
                    live.cpu_seconds if live else None,
                    live.memory if live else None,
                    live.processes if live else None,
                    await self._disk_used(record),
                    record.disk_limit,
                )
            )
        return found

    async def _disk_used(self, record: Record) -> int:
        try:
            return await self._parts.disks.used(record.id)
        except NotFound:
            if record.phase is not Phase.ARCHIVED:
                raise
            return 0

    async def log(self, sandbox_id: str, limit: int) -> str:
        record = self._operations.known(sandbox_id)
        if not record.machine:
            return ""
        return await self._parts.runtime(record.spec.runtime).log(record.machine, limit)

    # -- snapshots

    async def snapshot(
        self, operation: OperationRef, sandbox_id: str, snapshot: SnapshotOnNode, commit: bool
    ) -> SnapshotOnNode:
        async def work(record: Record, entry: Entry, undos: Undos) -> Record:
            if commit and record.point is None:
                raise Conflict(
                    "its disk survives as it is: there is nothing to commit", hint="sandkeep snapshot create"
                )
            made = await snapshots.make(self._parts, record, snapshot, entry, undos)
            return replace(made, point=self._parts.records.snapshots[snapshot.id].generation) if commit else made

        long = Phase.PAUSING if snapshot.kind is SnapshotKind.FULL else None
        await self._operations.operate(operation, sandbox_id, "snapshot", None, work, as_long_as=long)
        return snapshots.find(self._parts, sandbox_id, snapshot.id).snapshot

    async def adopt_snapshot(
        self,
        operation: OperationRef,
        sandbox_id: str,
        snapshot: SnapshotOnNode,
        source_id: str,
        source_snapshot_id: str,
    ) -> SnapshotOnNode:
        async def work(record: Record, entry: Entry, undos: Undos) -> Record:
            source = self._operations.known(source_id)
            of = snapshots.find_here(self._parts, source_id, source_snapshot_id)
            return await snapshots.adopt(self._parts, record, snapshot, source, of, entry, undos)

        await self._operations.operate(operation, sandbox_id, "adopt_snapshot", None, work)
        return snapshots.find(self._parts, sandbox_id, snapshot.id).snapshot

    async def archive_snapshot(self, operation: OperationRef, sandbox_id: str, snapshot_id: str) -> SnapshotOnNode:
        async def work(record: Record, entry: Entry, undos: Undos) -> Record:
            kept = snapshots.find(self._parts, sandbox_id, snapshot_id)
            return await archived_snapshots.archive(self._parts, record, kept, entry)

        verb, long = "archive_snapshot", Phase.ARCHIVING
        await self._operations.operate(operation, sandbox_id, verb, None, work, as_long_as=long)
        return snapshots.find(self._parts, sandbox_id, snapshot_id).snapshot

    async def wake_snapshot(self, operation: OperationRef, sandbox_id: str, snapshot_id: str) -> SnapshotOnNode:
        async def work(record: Record, entry: Entry, undos: Undos) -> Record:
            kept = snapshots.find(self._parts, sandbox_id, snapshot_id)
            return await archived_snapshots.wake(self._parts, record, kept, entry, undos)

        await self._operations.operate(operation, sandbox_id, "wake_snapshot", None, work, as_long_as=Phase.WAKING)
        return snapshots.find(self._parts, sandbox_id, snapshot_id).snapshot

    async def delete_snapshot(self, operation: OperationRef, sandbox_id: str, snapshot_id: str) -> None:
        async def work(record: Record, entry: Entry, undos: Undos) -> Record:
            return await snapshots.delete(self._parts, record, snapshot_id, entry)

        await self._operations.operate(operation, sandbox_id, "delete_snapshot", None, work)

    async def rollback(self, operation: OperationRef, sandbox_id: str, snapshot_id: str, memory: bool) -> Observed:
        async def work(record: Record, entry: Entry, undos: Undos) -> Record:
            kept = snapshots.find_here(self._parts, sandbox_id, snapshot_id)
            self._exits.expect(record)
            return await snapshots.rollback(self._parts, record, kept, memory, entry, undos)

        return await self._operations.operate(
            operation, sandbox_id, "rollback", Phase.STARTING, work, snapshot=snapshot_id, memory=memory
        )

    async def snapshots(self) -> list[SnapshotOnNode]:
        return [kept.snapshot for kept in self._parts.records.snapshots.values()]

    async def set_timeline(self, operation: OperationRef, sandbox_id: str, timeline: Timeline) -> Observed:
        async def work(record: Record, entry: Entry, undos: Undos) -> Record:
            spec = replace(record.spec, timeline=timeline)
            return replace(record, sandbox=replace(record.sandbox, spec=spec))

        return await self._operations.operate(operation, sandbox_id, "set_timeline", None, work)

    async def changed(self, sandbox_id: str) -> bool:
        return await moments.changed(self._parts, self._operations.known(sandbox_id))

    async def snapshot_sizes(self, sandbox_id: str, fresh: bool) -> SnapshotSizes | None:
        return await self._sizes.measure(sandbox_id) if fresh else self._sizes.known(sandbox_id)

    # -- looking at disks

    async def list_folder(self, point: Point, path: str, after: str, limit: int) -> list[FileAt]:
        return await self._browser.list_folder(point, path, after, limit)

    async def stat_path(self, point: Point, path: str, follow: bool) -> FileAt:
        return await self._browser.stat_path(point, path, follow)

    def read_file(self, point: Point, path: str) -> AsyncGenerator[bytes, None]:
        return self._browser.read_file(point, path)

    def read_tree(
        self, point: Point, path: str, name: str, follow: bool, exclude: tuple[str, ...]
    ) -> AsyncGenerator[bytes, None]:
        return self._browser.read_tree(point, path, name, follow, exclude)

    async def diff(self, before: Point, after: Point, limit: int) -> Difference:
        return await self._operations.detached(lambda: self._browser.diff(before, after, limit))

    # -- templates

    async def make_template(self, operation: OperationRef, sandbox_id: str, template: TemplateOnNode) -> TemplateOnNode:
        return await self._templates.make(operation, sandbox_id, template)

    async def delete_template(self, operation: OperationRef, template_id: str) -> None:
        await self._templates.delete(operation, template_id)

    async def templates(self) -> list[TemplateOnNode]:
        return list(self._parts.records.templates.values())

    # -- facts

    async def watch(self, after_seq: int) -> AsyncIterator[Fact]:
        async for fact in self._parts.feed.watch(after_seq):
            yield fact

    async def acknowledge(self, seq: int) -> None:
        self._parts.feed.acknowledge(seq)

    async def fsck(self) -> dict[str, Any]:
        return await fsck.check(self._parts)

    async def repair(self) -> None:
        async def body() -> None:
            await mend(self._parts, self._lanes.busy)

        await self._operations.detached(body)
