"""Machines that end by themselves: each has one watcher, and what follows from its end is written down."""

from dataclasses import replace

from anyio.abc import TaskGroup

from sandkeep.domain.errors import NotFound, SandkeepError
from sandkeep.domain.node import FactKind
from sandkeep.domain.sandbox import DEADLINES, ConditionKind, Phase
from sandkeep.domain.snapshot import Cause
from sandkeep.engine import lifecycle, machine, moments
from sandkeep.engine.lanes import Lanes
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Record
from sandkeep.engine.tombstones import Tombstones
from sandkeep.telemetry.log import log

_RETRY = 5.0


class Exits:
    """`watched`: machines whose end is news; `watchers`: those that somebody waits for."""

    def __init__(self, parts: Parts, lanes: Lanes, tombstones: Tombstones) -> None:
        self._parts = parts
        self._lanes = lanes
        self._tombstones = tombstones
        self._tasks: TaskGroup | None = None
        self.watched, self.watchers = set[str](), set[str]()

    def begin(self, tasks: TaskGroup) -> None:
        """The watchers run in these tasks."""
        self._tasks = tasks

    def watch(self, record: Record) -> None:
        """From now on the end of its machine, if it has one, is news."""
        if record.machine is None or record.machine in self.watched:
            return
        assert self._tasks is not None
        self.watched.add(record.machine)
        if record.machine not in self.watchers:  # a change that failed left its watcher
            self.watchers.add(record.machine)
            self._tasks.start_soon(self._await, record.id, record.machine)

    def expect(self, record: Record) -> None:
        """We are about to end its machine ourselves."""
        self.watched.discard(record.machine or "")

    async def _await(self, sandbox_id: str, machine_id: str) -> None:
        record = self._parts.records.sandboxes[sandbox_id]
        try:
            how = await self._parts.runtime(record.spec.runtime).wait_exit(machine_id)
        finally:
            self.watchers.discard(machine_id)
        if machine_id not in self.watched:
            return  # we ended it
        self.watched.discard(machine_id)
        log("machine.exited", sandbox=sandbox_id, machine=machine_id, how=how)
        while not await self._note(sandbox_id, machine_id, how):
            await self._parts.clock.sleep(_RETRY)

    async def _note(self, sandbox_id: str, machine_id: str, how: str) -> bool:
        """Whether it is written down, or is nobody's business any more. A disk that takes nothing now will later."""
        try:
            async with self._lanes.operate(sandbox_id, Phase.STOPPING, DEADLINES[Phase.STOPPING]):
                record = self._parts.records.sandboxes.get(sandbox_id)
                if record is None or record.machine != machine_id or record.phase is Phase.DELETED:
                    return True
                out_of_memory = "memory" in how
                kind = FactKind.OUT_OF_MEMORY if out_of_memory else FactKind.MACHINE_EXITED
                record = await machine.end(self._parts, record)
                if lifecycle.vanishes(record):
                    record = self._parts.records.save(replace(record, phase=Phase.DELETED, reason=how))
                    assert self._tasks is not None
                    self._tasks.start_soon(self._tombstones.erase, record)
                    self._parts.feed.tell(kind, sandbox_id, record.epoch, reason=how, deleted=True)
                    return True
                now = self._parts.clock.now()
                if out_of_memory:
                    record = record.with_condition(ConditionKind.OUT_OF_MEMORY, True, how, now)
                record = lifecycle.ended(record, f"its machine ended: {how}", now)
                cause = Cause.OUT_OF_MEMORY if out_of_memory else Cause.CRASH
                self._parts.records.save(await moments.keep(self._parts, record, cause))
                self._parts.feed.tell(kind, sandbox_id, record.epoch, reason=how)
        except NotFound:  # it is being deleted
            return True
        except SandkeepError as error:
            log("operation.failed", verb="exit", sandbox=sandbox_id, error=error.message)
            return False
        return True
