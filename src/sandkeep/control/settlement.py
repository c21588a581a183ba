"""What the server writes down, and tells, when the node has said what it sees. Pure: control.sandboxes saves it.

Here the rule for a machine that ended by itself is applied, exactly once for each machine: the node numbers them, and the
sandbox remembers the number it dealt with last. So it does not matter which comes first, the fact or a comparison, nor
how often they come.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sandkeep.domain.event import EventKind
from sandkeep.domain.node import Observed
from sandkeep.domain.restart import FORGOTTEN_AFTER, OnFailure, Restarts
from sandkeep.domain.sandbox import TRANSITIONAL, Condition, ConditionKind, Phase, Sandbox, Status

_SETTLED_EVENT = {
    Phase.RUNNING: EventKind.SANDBOX_STARTED,
    Phase.PAUSED: EventKind.SANDBOX_PAUSED,
    Phase.STOPPED: EventKind.SANDBOX_STOPPED,
    Phase.ARCHIVED: EventKind.SANDBOX_ARCHIVED,
    Phase.FAILED: EventKind.SANDBOX_FAILED,
}


@dataclass(frozen=True)
class Told:
    """An event to write with it."""

    kind: EventKind
    reason: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Settlement:
    sandbox: Sandbox
    events: tuple[Told, ...]


def settle(sandbox: Sandbox, observed: Observed, now: float, kind: EventKind | None = None, **data: Any) -> Settlement:
    """`kind`: the event of the operation that ended so; by default the phase's own, or what the node's news say."""
    ended, lost = _ended(sandbox, observed), _memory_lost(sandbox, observed)
    was, reason = sandbox.status, observed.reason
    phase, restarts, retried = observed.phase, sandbox.restarts, False
    if phase in TRANSITIONAL:
        pass  # what is under way on the node decides
    elif phase is not Phase.STOPPED:
        retried = phase is Phase.RUNNING and was.phase is Phase.STARTING and restarts.next_at is not None
        restarts = replace(restarts, next_at=None)
    elif ended:
        restarts = replace(restarts, machine=observed.exited, next_at=None)
        if sandbox.spec.on_failure is OnFailure.RESTART:
            restarts = restarts.planned(now)
        elif sandbox.spec.on_failure is OnFailure.LEAVE:
            phase, reason = Phase.FAILED, f"{reason}; it is left so, as on_failure=leave asks"
    elif was.phase is Phase.STARTING and restarts.next_at is not None:
        restarts = restarts.planned(now)  # the try failed
    elif _left(sandbox, observed):
        phase = Phase.FAILED
    if retried:
        reason = f"started again from its disk: {_in_a_row(restarts)}"
    status = Status(phase, observed.hold, reason, now, observed.conditions)
    status = _with_crash_loop(status, was, restarts, now)
    after = replace(
        sandbox,
        status=status,
        operation=None,
        updated_at=now,
        epoch=max(sandbox.epoch, observed.epoch),
        restarts=restarts,
    )
    events = []
    told = EventKind.SANDBOX_RESTARTED if retried else _event(kind, observed, ended or lost)
    if told:
        events.append(Told(told, reason, {"hold": observed.hold, **data}))
    if ended and told not in (EventKind.SANDBOX_EXITED, EventKind.SANDBOX_OUT_OF_MEMORY):
        events.append(Told(EventKind.SANDBOX_EXITED, observed.reason, {}))
    if lost:
        events.append(Told(EventKind.SANDBOX_MEMORY_LOST, observed.reason, {}))
    loop = status.condition(ConditionKind.CRASH_LOOP)
    if loop and was.condition(ConditionKind.CRASH_LOOP) is None:
        events.append(Told(EventKind.SANDBOX_CRASH_LOOP, loop.reason, {"failures": restarts.failures}))
    return Settlement(after, tuple(events))


def differs(sandbox: Sandbox, observed: Observed) -> bool:
    """Whether there is anything to write. To the node, a sandbox that is left as it is is a stopped one."""
    if observed.epoch > sandbox.epoch:
        return True  # the database is an older copy: the node would refuse what we ask
    if sandbox.status.phase is Phase.FAILED and _left(sandbox, observed):
        return False
    same = (observed.phase, observed.hold) == (sandbox.status.phase, sandbox.status.hold)
    return not same or _ended(sandbox, observed)


def lost(sandbox: Sandbox, now: float) -> Observed:
    """What the node would say of one that it does not know."""
    reason = "the node has no record of it; its disk may be in quarantine"
    status = sandbox.status.with_condition(Condition(ConditionKind.RECORD_LOST, True, reason, now))
    return Observed(sandbox.id, sandbox.epoch, Phase.FAILED, None, reason, status.conditions)


def forgotten(sandbox: Sandbox) -> Sandbox:
    """It was started or stopped by hand, or has run for long enough: nothing is planned, nothing counts any more."""
    status = sandbox.status.without(ConditionKind.CRASH_LOOP)
    return replace(sandbox, status=status, restarts=sandbox.restarts.forgotten())


def _ended(sandbox: Sandbox, observed: Observed) -> bool:
    """Its machine ended by itself, and nothing has followed from that yet."""
    return observed.phase is Phase.STOPPED and observed.exited not in (0, sandbox.restarts.machine)


def _left(sandbox: Sandbox, observed: Observed) -> bool:
    """It stays `failed`; so it does when its owner tried to start it and that did not work."""
    if observed.phase is not Phase.STOPPED or observed.exited == 0:
        return False
    tried = sandbox.status.phase is Phase.STARTING and sandbox.spec.on_failure is OnFailure.LEAVE
    return observed.exited == sandbox.restarts.machine and (tried or sandbox.status.phase is Phase.FAILED)


def _memory_lost(sandbox: Sandbox, observed: Observed) -> bool:
    before = sandbox.status.condition(ConditionKind.MEMORY_LOST)
    return any(c.kind is ConditionKind.MEMORY_LOST and c.value and c != before for c in observed.conditions)


def _event(kind: EventKind | None, observed: Observed, by_itself: bool) -> EventKind | None:
    if kind in (EventKind.SANDBOX_PAUSED, EventKind.SANDBOX_RESUMED) and observed.phase is Phase.STOPPED:
        return EventKind.SANDBOX_STOPPED
    if kind is None and by_itself:
        full = any(c.kind is ConditionKind.OUT_OF_MEMORY and c.value for c in observed.conditions)
        return EventKind.SANDBOX_OUT_OF_MEMORY if full else EventKind.SANDBOX_EXITED
    return kind or _SETTLED_EVENT.get(observed.phase)


def _with_crash_loop(status: Status, was: Status, restarts: Restarts, now: float) -> Status:
    if not restarts.looping:
        return status
    if restarts.next_at is not None:
        then = f"the next try is at {datetime.fromtimestamp(restarts.next_at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    elif status.phase is Phase.RUNNING:
        then = f"it runs now; after {FORGOTTEN_AFTER / 60:.0f} minutes of that they are forgotten"
    else:
        return status
    before = was.condition(ConditionKind.CRASH_LOOP)
    since = before.at if before else now
    return status.with_condition(Condition(ConditionKind.CRASH_LOOP, True, f"{_in_a_row(restarts)}; {then}", since))


def _in_a_row(restarts: Restarts) -> str:
    return f"it failed {restarts.failures} times in a row" if restarts.failures > 1 else "it failed once"
