"""Archives: sandboxes, and snapshots of them, that move to the object store, and come back when somebody needs them."""

from collections.abc import Awaitable, Callable

from sandkeep.contracts.runner import Runner
from sandkeep.control.events import Events
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.control.snapshots import Snapshots
from sandkeep.domain.errors import Conflict, SandkeepError, Unavailable
from sandkeep.domain.event import EventKind
from sandkeep.domain.node import Observed, OperationRef, SnapshotOnNode
from sandkeep.domain.sandbox import Phase, Sandbox
from sandkeep.domain.snapshot import Snapshot
from sandkeep.domain.why import what_wakes

_Move = Callable[[OperationRef, str, str], Awaitable[SnapshotOnNode]]
_AWAKE = frozenset({Phase.STOPPED, Phase.PAUSED, Phase.RUNNING})


class Archives:
    def __init__(self, events: Events, sandboxes: Sandboxes, snapshots: Snapshots, runner: Runner) -> None:
        self._events = events
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._runner = runner

    async def archive(self, project_id: str, reference: str) -> Sandbox:
        """What is stopped, or paused on disk. Its local copy goes when the archive was read back."""

        async def act(sandbox: Sandbox, operation: OperationRef) -> Observed:
            return await self._runner.archive(operation, sandbox.id)

        return await self._sandboxes.change(
            project_id,
            reference,
            Phase.ARCHIVING,
            EventKind.SANDBOX_ARCHIVING,
            EventKind.SANDBOX_ARCHIVED,
            lambda sandbox: sandbox.status.phase is Phase.ARCHIVED,
            act,
        )

    async def wake(self, project_id: str, reference: str, *, disk_only: bool = False, by_hand: bool = True) -> Sandbox:
        """As it was when it was archived; `disk_only`: stopped, without its memory. What is here already stays as it is."""

        async def act(sandbox: Sandbox, operation: OperationRef) -> Observed:
            return await self._runner.wake(operation, sandbox.id, disk_only)

        def check(sandbox: Sandbox) -> bool:
            if sandbox.status.phase is Phase.FAILED:
                raise Conflict(f"it has failed, and is not archived: {sandbox.status.reason}", hint=what_wakes(sandbox))
            return sandbox.status.phase in _AWAKE

        return await self._sandboxes.change(
            project_id,
            reference,
            Phase.WAKING,
            EventKind.SANDBOX_WAKING,
            EventKind.SANDBOX_WOKEN,
            check,
            act,
            by_hand=by_hand,
        )

    async def bring_back(self, project_id: str, reference: str) -> None:
        """If it is archived: what is to be done with it needs its disk."""
        sandbox = await self._sandboxes.get(project_id, reference)
        if sandbox.status.phase is Phase.ARCHIVED:
            await self.wake(project_id, sandbox.id)

    async def archive_snapshot(self, project_id: str, reference: str, snapshot: str) -> Snapshot:
        """Its local copy goes when all of it was read back from the store. It stays a snapshot of its sandbox."""
        return await self._move(project_id, reference, snapshot, self._runner.archive_snapshot)

    async def wake_snapshot(self, project_id: str, reference: str, snapshot: str) -> Snapshot:
        return await self._move(project_id, reference, snapshot, self._runner.wake_snapshot)

    async def _move(self, project_id: str, reference: str, snapshot: str, move: _Move) -> Snapshot:
        """Asked of the node whatever the row says: the node knows where it is."""
        found = await self._snapshots.get(project_id, reference, snapshot)
        async with self._snapshots.turn(project_id, found.sandbox_id) as sandbox:
            found = await self._snapshots.get(project_id, sandbox.id, found.id)
            async with self._events.change() as ledger:
                intent, operation = await self._sandboxes.intend(ledger, sandbox)
            try:
                moved = await move(operation, sandbox.id, found.id)
            except SandkeepError as error:
                if not isinstance(error, Unavailable) or error.details.get("part") == "store":
                    async with self._events.change() as ledger:  # the node answered: it is as it was
                        await self._snapshots.end(ledger, intent)
                raise
            return await self._snapshots.moved(found, moved, intent)
