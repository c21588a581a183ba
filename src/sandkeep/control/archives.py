"""Archives: sandboxes that move to the object store, and come back when somebody needs them."""

from sandkeep.contracts.runner import Runner
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.domain.errors import Conflict
from sandkeep.domain.event import EventKind
from sandkeep.domain.node import Observed, OperationRef
from sandkeep.domain.sandbox import Phase, Sandbox
from sandkeep.domain.why import what_wakes

_AWAKE = frozenset({Phase.STOPPED, Phase.PAUSED, Phase.RUNNING})


class Archives:
    def __init__(self, sandboxes: Sandboxes, runner: Runner) -> None:
        self._sandboxes = sandboxes
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
