"""Lifetimes that ended: what each one's rule says is done, and tried again ever more rarely where it cannot be done.

Run by the reconciler, in the background: one that hangs keeps no other waiting.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from anyio.abc import TaskGroup

from sandkeep.contracts.clock import Clock
from sandkeep.contracts.runner import Runner
from sandkeep.control.events import Events
from sandkeep.control.nodes import Nodes
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.control.ticks import clear_expiry
from sandkeep.domain.errors import SandkeepError
from sandkeep.domain.sandbox import TRANSITIONAL, Hold, OnExpiry, Persistence, Phase, Sandbox
from sandkeep.lib.retry import delays
from sandkeep.telemetry.log import log

_FIRST_WAIT, _LONGEST_WAIT = 5.0, 3600.0


@dataclass
class _Try:
    """after: when the next one may be, on the monotonic clock."""

    waits: Iterator[float] = field(default_factory=lambda: delays(_FIRST_WAIT, cap=_LONGEST_WAIT))
    after: float = 0.0
    under_way: bool = False


class Expiries:
    def __init__(
        self,
        events: Events,
        sandboxes: Sandboxes,
        runner: Runner,
        nodes: Nodes,
        clock: Clock,
        connected: Callable[[], bool],
    ) -> None:
        self._events = events
        self._sandboxes = sandboxes
        self._runner = runner
        self._nodes = nodes
        self._clock = clock
        self._connected = connected
        self._tries: dict[str, _Try] = {}

    def begin(self, tasks: TaskGroup, expired: Iterable[Sandbox]) -> None:
        """`expired`: all of them, as of now."""
        tries = {}
        for sandbox in expired:
            tries[sandbox.id] = one = self._tries.get(sandbox.id) or _Try()
            if not one.under_way and self._clock.monotonic() >= one.after:
                one.under_way = True
                tasks.start_soon(self._expire, sandbox, one)
        self._tries = tries

    async def _expire(self, sandbox: Sandbox, one: _Try) -> None:
        try:
            if self._connected() and sandbox.status.phase not in TRANSITIONAL:
                await self._apply(sandbox)
        except SandkeepError as error:
            wait = next(one.waits)
            one.after = self._clock.monotonic() + wait
            log("expiry.failed", "warning", sandbox=sandbox.id, error=error.message, again_in=round(wait))
        finally:
            one.under_way = False

    async def _apply(self, sandbox: Sandbox) -> None:
        """The rule that its owner set decides."""
        if not self._nodes.standing.paired and await self._runner.show(sandbox.id) is None:
            return
        project, persistence = sandbox.project_id, sandbox.spec.persistence
        if sandbox.spec.lifetime.on_expiry is OnExpiry.DELETE or persistence is Persistence.EPHEMERAL:
            why = "its lifetime ended" if sandbox.spec.lifetime.grace is None else "its client vanished"
            await self._sandboxes.delete(project, sandbox.id, reason=why)
            return
        if sandbox.status.phase is Phase.RUNNING or sandbox.status.hold is Hold.MEMORY:
            if persistence is Persistence.FULL:
                await self._sandboxes.pause(project, sandbox.id, Hold.DISK, None, reason="its lifetime ended")
            else:
                await self._sandboxes.stop(project, sandbox.id, reason="its lifetime ended")
        await clear_expiry(self._events, sandbox)
