"""The frame around every operation: a task of our own, so that a caller who vanishes interrupts nothing; the sandbox's
lane; epoch and operation id; the intent, the act, the durable record, and only then the answer.
"""

from collections.abc import Awaitable, Callable, Container
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup

from sandkeep.domain.errors import Conflict, Internal, NotFound, SandkeepError, Superseded, Unavailable, every_error
from sandkeep.domain.node import Observed, OperationRef, SandboxOnNode
from sandkeep.domain.sandbox import DEADLINES, Hold, Phase
from sandkeep.engine import archiving, machine
from sandkeep.engine.exits import Exits
from sandkeep.engine.journal import Entry
from sandkeep.engine.lanes import Lanes
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Generation, Record
from sandkeep.engine.storage import storage_error
from sandkeep.engine.undo import Undos
from sandkeep.telemetry.log import log

T = TypeVar("T")
Work = Callable[[Record, Entry, Undos], Awaitable[Record]]

SYNC_PATIENCE = 30.0


class Operations:
    def __init__(self, parts: Parts, lanes: Lanes, exits: Exits) -> None:
        self._parts = parts
        self._lanes = lanes
        self._exits = exits
        self._tasks: TaskGroup | None = None

    def begin(self, tasks: TaskGroup) -> None:
        """From now on they run, in these tasks."""
        self._tasks = tasks

    async def detached(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run in our own task: the caller may vanish, the work goes on to its end."""
        done = anyio.Event()
        values: list[T] = []
        errors: list[SandkeepError] = []

        async def body() -> None:
            try:
                values.append(await work())
            except SandkeepError as error:
                errors.append(error)
            except Exception as error:
                log("operation.failed", "error", error=repr(error))
                failed = storage_error(error, "what the node does") if isinstance(error, OSError) else None
                failed = failed or Internal(f"the node failed: {type(error).__name__}: {error}")
                failed.__cause__ = error
                errors.append(failed)
            finally:
                done.set()

        if self._tasks is None:
            raise Internal("the runner is not ready")
        self._tasks.start_soon(body)
        await done.wait()
        if errors:
            raise errors[0]
        if not values:
            raise Unavailable("the runner is stopping", retry_after=1)
        return values[0]

    async def operate(
        self,
        operation: OperationRef,
        sandbox_id: str,
        verb: str,
        phase: Phase | None,
        work: Work,
        *,
        as_long_as: Phase | None = None,
        **facts: Any,
    ) -> Observed:
        """One change of one sandbox: `work` acts and returns the record as it is to be. It may be repeated with the same
        operation, whose outcome is then told again. `as_long_as`: of which phase it has the deadline, if it shows none."""

        async def body() -> Observed:
            async with self._lanes.operate(sandbox_id, phase, DEADLINES.get(phase or as_long_as or Phase.NEW, 60.0)):
                record = self.known(sandbox_id)
                self.fence(operation, record)
                if operation.id in record.outcomes:
                    return replay(record, operation.id)
                archiving.check_here(record, verb)
                record = replace(record, epoch=operation.epoch)
                entry = self._parts.journal.begin(operation.id, verb, sandbox_id, **facts)
                try:
                    async with Undos() as undos:
                        after = await work(record, entry, undos)
                        entry.step("record")
                        after = self._parts.records.save(after.with_outcome(operation.id, None))
                except BaseException as error:
                    self._failed(operation, sandbox_id, verb, error)
                    self._close_durably(entry)
                    raise
                await self._settle(record, after, entry)
                return self._parts.records.sandboxes[sandbox_id].observed()

        return await self.detached(body)

    async def make(
        self,
        operation: OperationRef,
        sandbox: SandboxOnNode,
        verb: str,
        deadline: float,
        gone: Container[str],
        room: AbstractAsyncContextManager[None],
        work: Callable[[Entry, Undos], Awaitable[Record]],
    ) -> Observed:
        """A sandbox that was not there: `work` makes it and returns its record. `gone`: those whose delete came before this;
        `room`: held meanwhile; raises when it cannot be, before anything is done."""

        async def body() -> Observed:
            async with self._lanes.operate(sandbox.id, Phase.STARTING, deadline):
                existing = self._parts.records.sandboxes.get(sandbox.id)
                if existing is not None:
                    self.fence(operation, existing)
                    if operation.id in existing.outcomes:
                        return replay(existing, operation.id)
                    raise Conflict(f"sandbox {sandbox.id} exists on this node")
                if sandbox.id in gone:
                    raise Superseded(f"sandbox {sandbox.id} was deleted before its creation came")
                async with room:
                    entry = self._parts.journal.begin(operation.id, verb, sandbox.id)
                    try:
                        async with Undos() as undos:
                            record = await work(entry, undos)
                            entry.step("record")
                            record = self._parts.records.save(record.with_outcome(operation.id, None))
                    except BaseException:
                        with anyio.CancelScope(shield=True), suppress(Exception), anyio.fail_after(SYNC_PATIENCE):
                            await self._parts.disks.sync()  # the disk is gone also after a power cut; then the intent
                        entry.close()
                        raise
                    entry.close()
                self._exits.watch(record)
                return record.observed()

        return await self.detached(body)

    def _close_durably(self, entry: Entry) -> None:
        """Forget the intent once what was undone or dropped survives a power cut; nobody waits for it."""

        async def body() -> None:
            with suppress(Exception), anyio.fail_after(SYNC_PATIENCE):
                await self._parts.disks.sync()
            entry.close()

        assert self._tasks is not None
        self._tasks.start_soon(body)

    async def _settle(self, before: Record, after: Record, entry: Entry) -> None:
        """After the commit point: what the new record no longer needs goes. A crash here is finished by recovery."""
        dropped = False
        with anyio.CancelScope(shield=True):
            if after.phase is Phase.PAUSED and after.hold is Hold.DISK and after.machine:
                with suppress(SandkeepError):  # what cannot be noted is done all the same, from here on
                    entry.step("machine.end")
                after = self._parts.records.save(await machine.end(self._parts, after))
            elif before.generation and not _still_paused_on(before.generation, after):
                with suppress(SandkeepError):
                    entry.step("generation.drop")
                if after.generation and after.phase is not Phase.PAUSED:
                    await self._parts.disks.sync()
                    after = self._parts.records.save(replace(after, generation=None))
                if not self._parts.records.needed(before.generation.id):
                    await self._parts.disks.drop_generation(after.id, before.generation.id)
                dropped = True
            if before.point and not self._parts.records.needed(before.point.id):  # another one was committed
                with suppress(SandkeepError):
                    entry.step("generation.drop")
                await self._parts.disks.drop_generation(after.id, before.point.id)
                dropped = True
            if after.phase is Phase.ARCHIVED and before.phase is not Phase.ARCHIVED:
                with suppress(SandkeepError):
                    entry.step("disk.drop")
                await archiving.drop(self._parts, after)
                dropped = True
        if dropped:
            self._close_durably(entry)
        else:
            entry.close()
        self._exits.watch(after)

    def _failed(self, operation: OperationRef, sandbox_id: str, verb: str, error: BaseException) -> None:
        """Remember the outcome, and go on watching the machine if it still is the sandbox's."""
        record = self._parts.records.sandboxes[sandbox_id]
        failure: dict[str, Any] = {"code": "internal", "message": str(error) or type(error).__name__, "hint": None}
        if isinstance(error, anyio.get_cancelled_exc_class()):
            failure |= {"code": "busy", "message": "it was interrupted, or took too long, and was undone"}
        if isinstance(error, SandkeepError):
            failure = {"code": error.code, "message": error.message, "hint": error.hint}
        with suppress(SandkeepError):  # a disk that takes nothing: the same id is then tried anew, not answered
            self._parts.records.save(replace(record, epoch=operation.epoch).with_outcome(operation.id, failure))
        log("operation.failed", verb=verb, sandbox=sandbox_id, **failure)
        self._exits.watch(record)

    def known(self, sandbox_id: str) -> Record:
        """Raises NotFound."""
        record = self._parts.records.sandboxes.get(sandbox_id)
        if record is None or record.phase is Phase.DELETED:
            raise NotFound(f"sandbox {sandbox_id} is not on this node")
        return record

    def fence(self, operation: OperationRef, record: Record) -> None:
        """Raises Superseded."""
        if operation.epoch < record.epoch:
            raise Superseded(f"epoch {operation.epoch} is older than {record.epoch}", current=record.epoch)


def _still_paused_on(generation: Generation, after: Record) -> bool:
    return after.phase is Phase.PAUSED and after.generation is not None and after.generation.id == generation.id


def replay(record: Record, operation_id: str) -> Observed:
    """The outcome that this operation had. Raises what it raised."""
    failure = record.outcomes[operation_id]
    if failure is None:
        return record.observed()
    kind = every_error().get(failure["code"], Internal)
    raise kind(failure["message"], hint=failure.get("hint"))
