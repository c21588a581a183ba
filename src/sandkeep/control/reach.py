"""The way to the agent of a sandbox: what a call needs before it can go inside."""

from sandkeep.contracts.runner import Runner
from sandkeep.control.archives import Archives
from sandkeep.control.changes import refuse_deleted
from sandkeep.control.endpoints import Reached
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.domain.errors import Conflict
from sandkeep.domain.sandbox import TRANSITIONAL, Phase, Sandbox
from sandkeep.domain.why import is_lost, what_wakes

_SETTLED_WITHIN = 30.0
"""Seconds that a call waits for a sandbox that a crash left in the middle of a change."""


class Reach:
    def __init__(self, sandboxes: Sandboxes, runner: Runner, archives: Archives) -> None:
        self._archives = archives
        self._sandboxes = sandboxes
        self._runner = runner

    async def agent(self, project_id: str, reference: str, *, wake: bool) -> Reached:
        """The way to the agent of a running sandbox; wakes it when asked to. Raises Conflict, NotFound."""
        known = self._sandboxes.endpoints.get(project_id, reference)
        if known:
            return known
        sandbox = await self._sandboxes.get(project_id, reference)
        if sandbox.status.phase is not Phase.RUNNING:
            sandbox = await self._wake(sandbox, wake)
        forgotten = self._sandboxes.endpoints.forgotten
        reached = Reached(sandbox.id, await self._runner.endpoint(sandbox.id))
        return self._sandboxes.endpoints.put(project_id, reference, reached, forgotten)

    async def _wake(self, sandbox: Sandbox, wake: bool) -> Sandbox:
        refuse_deleted(sandbox)
        if not wake:
            raise Conflict(
                f"it is not running ({sandbox.status.reason or sandbox.status.phase})",
                hint=f"{what_wakes(sandbox)}, or leave out --no-resume (over HTTP: no_resume)",
                phase=sandbox.status.phase,
            )
        async with self._sandboxes.held(sandbox.project_id, sandbox.id):  # whatever is under way ends first
            sandbox = await self._sandboxes.get(sandbox.project_id, sandbox.id)
        refuse_deleted(sandbox)
        if sandbox.status.phase in TRANSITIONAL:
            # A crash left it so: the reconciler settles it as soon as the node is back.
            settled = set(Phase) - TRANSITIONAL | {Phase.DELETING}
            sandbox = await self._sandboxes.wait(sandbox.project_id, sandbox.id, settled, _SETTLED_WITHIN)
            refuse_deleted(sandbox)
        if sandbox.status.phase is Phase.ARCHIVED:
            sandbox = await self._archives.wake(sandbox.project_id, sandbox.id, by_hand=False)
        match sandbox.status.phase:
            case Phase.RUNNING:
                return sandbox
            case Phase.PAUSED:
                return await self._sandboxes.resume(sandbox.project_id, sandbox.id)
            case Phase.STOPPED:
                return await self._sandboxes.start(sandbox.project_id, sandbox.id, by_hand=False)
            case Phase.FAILED:
                raise Conflict(
                    f"it has failed, and no call starts it: {sandbox.status.reason}",
                    hint=what_wakes(sandbox) if is_lost(sandbox) else f"start it: {what_wakes(sandbox)}",
                    phase=sandbox.status.phase,
                )
        raise Conflict(f"it is {sandbox.status.phase}", hint="wait for it: sandkeep wait", phase=sandbox.status.phase)

    async def lost(self, reached: Reached) -> None:
        """A dial failed: forget the endpoint, so that the next try asks the node."""
        self._sandboxes.endpoints.forget(reached.id)
