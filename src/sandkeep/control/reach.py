"""The way to the agent of a sandbox: what a call needs before it can go inside."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import anyio

from sandkeep.contracts.guest import Guest
from sandkeep.contracts.runner import Runner
from sandkeep.control.archives import Archives
from sandkeep.control.changes import refuse_deleted
from sandkeep.control.endpoints import Reached
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.domain.errors import Conflict, GuestUnreachable, SandkeepError
from sandkeep.domain.sandbox import TRANSITIONAL, ConditionKind, Phase, Sandbox
from sandkeep.domain.why import is_lost, what_wakes
from sandkeep.lib.together import together

_SETTLED_WITHIN = 30.0
"""Seconds that a call waits for a sandbox that a crash left in the middle of a change."""
_SILENCE = 15.0
"""Seconds without a sign of life after which a call has the agent asked."""
_ANSWERS_WITHIN = 15.0
"""Seconds for an agent to say that it is there. On a host that is overwhelmed, some take a few."""


class Reach:
    def __init__(self, sandboxes: Sandboxes, runner: Runner, archives: Archives, guest: Guest) -> None:
        self._guest = guest
        self._archives = archives
        self._sandboxes = sandboxes
        self._runner = runner
        self._silent: set[str] = set()

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
        if _is_silent(sandbox):
            self._silent.add(sandbox.id)  # as a server before this one found
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

    @asynccontextmanager
    async def attended(self, project_id: str, reached: Reached) -> AsyncIterator[Callable[[], None]]:
        """No call waits for ever for a guest that stands still. The body calls what it is given at each sign that the agent
        lives; after a long silence the agent is asked, and the body ends with GuestUnreachable (`hangs`: another try would
        find the same) when it does not say that it is there."""
        last = anyio.current_time()

        def heard() -> None:
            nonlocal last
            last = anyio.current_time()

        async def listen() -> None:
            while True:
                await anyio.sleep_until(last + _SILENCE)
                if anyio.current_time() >= last + _SILENCE:
                    await self._ask(project_id, reached)
                    heard()

        try:
            async with together() as tasks:
                tasks.start_soon(listen)
                yield heard
                tasks.cancel_scope.cancel()
        except GuestUnreachable as error:
            if error.details.get("silent"):
                await self._ask(project_id, reached)
            raise
        if reached.id in self._silent:
            await self._note_answer(project_id, reached)

    async def _ask(self, project_id: str, reached: Reached) -> None:
        """Raises GuestUnreachable, and says so in a condition, when the agent of what runs all the while answers nobody. What is
        paused meanwhile is none of it."""
        try:
            before = await self._sandboxes.get(project_id, reached.id)
            if before.status.phase is not Phase.RUNNING:
                return None
            with suppress(GuestUnreachable):
                return await self._guest.wait_ready(reached.endpoint, _ANSWERS_WITHIN)
            after = await self._sandboxes.get(project_id, reached.id)
        except SandkeepError:  # it is gone, or the database is: nobody knows
            return None
        if after.status.phase is not Phase.RUNNING or after.status.since != before.status.since:
            return None
        self._silent.add(reached.id)
        with suppress(SandkeepError):
            await self._sandboxes.note_guest(after, ready=False, reason="its agent does not answer")
        name = after.name or after.id
        raise GuestUnreachable(
            "its agent does not answer any more: all in it stands still",
            hint=f"sandkeep stop {name}, then start: its disk is kept. What else it may be: sandkeep why {name}",
            hangs=True,
        )

    async def _note_answer(self, project_id: str, reached: Reached) -> None:
        """An agent that did not answer before, does."""
        self._silent.discard(reached.id)
        with suppress(SandkeepError):
            sandbox = await self._sandboxes.get(project_id, reached.id)
            await self._sandboxes.note_guest(sandbox, ready=True, reason="the agent answers")

    async def lost(self, reached: Reached) -> None:
        """A dial failed: forget the endpoint, so that the next try asks the node."""
        self._sandboxes.endpoints.forget(reached.id)


def _is_silent(sandbox: Sandbox) -> bool:
    ready = sandbox.status.condition(ConditionKind.GUEST_READY)
    return ready is not None and not ready.value
