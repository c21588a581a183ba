"""Why a sandbox is as it is: one sentence on what it does, the reasons, what comes next by itself, what its owner can do.

Pure: from the sandbox and its last events. The API and `sandkeep why` show it as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sandkeep.domain.event import Event, EventKind
from sandkeep.domain.restart import OnFailure
from sandkeep.domain.sandbox import (
    DEADLINES,
    Condition,
    ConditionKind,
    Hold,
    OnExpiry,
    Persistence,
    Phase,
    Sandbox,
    Status,
)

EVENTS = 20
"""So many of the last events are looked at."""

_DOING = {
    Phase.NEW: "it is about to be made",
    Phase.STARTING: "a machine is being started on its disk",
    Phase.RUNNING: "it runs",
    Phase.PAUSING: "it is being paused",
    Phase.RESUMING: "it is being resumed",
    Phase.STOPPING: "its machine is being ended",
    Phase.STOPPED: "it is stopped; its disk is kept",
    Phase.ARCHIVING: "it is being moved to the object store, and read back from there",
    Phase.ARCHIVED: "it is archived: all of it is in the object store, and takes nothing here",
    Phase.WAKING: "it is being brought back from the object store",
    Phase.DELETING: "it is being deleted",
    Phase.DELETED: "it is deleted, and nothing of it is left",
    Phase.FAILED: "it has failed; what is left of it is kept, and no call starts it",
}

_WORTH_TELLING = {
    ConditionKind.GUEST_READY: False,
    ConditionKind.MEMORY_SAVABLE: False,
    ConditionKind.CONNECTIONS_RESET: True,
    ConditionKind.OUT_OF_MEMORY: True,
    ConditionKind.MEMORY_LOST: True,
    ConditionKind.CRASH_LOOP: True,
    ConditionKind.RESCUE: True,
    ConditionKind.RECORD_LOST: True,
    ConditionKind.ARCHIVE_DAMAGED: True,
}
"""The value that says something is not as it should be. DiskReady is told by the phase, as is GuestReady of what does not run."""

_TROUBLE = frozenset(
    {
        EventKind.SANDBOX_EXITED,
        EventKind.SANDBOX_OUT_OF_MEMORY,
        EventKind.SANDBOX_PAUSE_FAILED,
        EventKind.SANDBOX_RESUME_FAILED,
        EventKind.SANDBOX_ARCHIVE_FAILED,
        EventKind.SANDBOX_WAKE_FAILED,
        EventKind.SANDBOX_FAILED,
    }
)


@dataclass(frozen=True)
class Next:
    """What comes by itself. at: seconds since the epoch, None when nobody knows."""

    what: str
    at: float | None = None


@dataclass(frozen=True)
class Remedy:
    """A command, and what it does."""

    command: str
    what: str


@dataclass(frozen=True)
class Explanation:
    doing: str
    since: float
    because: tuple[str, ...]
    next: tuple[Next, ...]
    can: tuple[Remedy, ...]


def explain(sandbox: Sandbox, events: Sequence[Event] = ()) -> Explanation:
    """`events`: the last ones about it, oldest first."""
    return Explanation(
        doing=_doing(sandbox),
        since=sandbox.status.since,
        because=tuple(_because(sandbox, events)),
        next=tuple(_next(sandbox)),
        can=tuple(_can(sandbox)),
    )


def _doing(sandbox: Sandbox) -> str:
    status = sandbox.status
    if status.phase is Phase.PAUSED:
        return (
            "it is paused: its memory and processes are on disk, and cost the host no memory"
            if status.hold is Hold.DISK
            else "it is paused: its processes are frozen, and their memory stays in use"
        )
    if status.phase is Phase.STOPPED and sandbox.restarts.next_at is not None:
        return "it waits to be started again; its disk is kept"
    return _DOING[status.phase]


def _because(sandbox: Sandbox, events: Sequence[Event]) -> list[str]:
    """The reason, what is not as it should be, and the last trouble; nothing twice."""
    status = sandbox.status
    reasons = [status.reason] if status.reason else []
    for condition in _worth_telling(status):
        reasons.append(f"{condition.kind}: {condition.reason}")
    trouble = next((event for event in reversed(events) if event.kind in _TROUBLE and event.reason), None)
    if trouble and not any(trouble.reason in reason or reason in trouble.reason for reason in reasons):
        reasons.append(f"before that: {trouble.reason}")
    return reasons


def _worth_telling(status: Status) -> list[Condition]:
    told = [c for c in status.conditions if _WORTH_TELLING.get(c.kind) is c.value]
    return [c for c in told if c.kind is not ConditionKind.GUEST_READY or status.phase is Phase.RUNNING]


def _next(sandbox: Sandbox) -> list[Next]:
    status, found = sandbox.status, []
    if status.phase in DEADLINES:
        found.append(
            Next(
                "it ends by itself; what takes longer than this is settled by the server, once the node answers",
                status.since + DEADLINES[status.phase],
            )
        )
    if sandbox.restarts.next_at is not None and status.phase is Phase.STOPPED:
        found.append(
            Next(f"it is started again (failures in a row: {sandbox.restarts.failures})", sandbox.restarts.next_at)
        )
    if status.phase is Phase.RUNNING:
        found.append(Next(f"if its machine ends by itself, {_after_an_end(sandbox)}"))
    if status.phase in (Phase.STOPPED, Phase.PAUSED):
        found.append(Next(f"a call (exec, shell, cp) {'starts' if status.phase is Phase.STOPPED else 'resumes'} it"))
    if status.phase is Phase.ARCHIVED:
        found.append(Next("a call (exec, shell, cp) brings it back, and starts or resumes it"))
    if sandbox.expires_at is not None and status.phase not in (Phase.DELETING, Phase.DELETED):
        what = f"its lifetime ends, and it is {_at_expiry(sandbox)}"
        if sandbox.expires_at <= status.since and status.phase not in (Phase.STOPPED, Phase.FAILED):
            what = f"its lifetime has ended: that it be {_at_expiry(sandbox)} is tried again, ever more rarely"
            found.append(Next(what))
        else:
            found.append(Next(what, sandbox.expires_at))
    return sorted(found, key=lambda step: (step.at is None, step.at or 0.0))


def _after_an_end(sandbox: Sandbox) -> str:
    if sandbox.spec.persistence is Persistence.EPHEMERAL:
        return "it is deleted"
    return {
        OnFailure.RESTART: "it is started again from its disk",
        OnFailure.STOP: "it is stopped, and the next call starts it",
        OnFailure.LEAVE: "it is left as it is, until you start it",
    }[sandbox.spec.on_failure]


def _at_expiry(sandbox: Sandbox) -> str:
    persistence = sandbox.spec.persistence
    if sandbox.spec.lifetime.on_expiry is OnExpiry.DELETE or persistence is Persistence.EPHEMERAL:
        return "deleted"
    if sandbox.status.phase in (Phase.STOPPED, Phase.FAILED, Phase.ARCHIVED):
        return "left as it is"
    return "paused to disk" if persistence is Persistence.FULL else "stopped"


def _can(sandbox: Sandbox) -> list[Remedy]:
    name, status = sandbox.name or sandbox.id, sandbox.status
    full = sandbox.spec.persistence is Persistence.FULL
    found: list[Remedy] = []
    match status.phase:
        case Phase.NEW | Phase.STARTING | Phase.RESUMING:
            found.append(Remedy(f"sandkeep wait {name}", "wait until it runs"))
        case Phase.PAUSING:
            found.append(Remedy(f"sandkeep wait {name} --phase paused", "wait until it is paused"))
        case Phase.ARCHIVING:
            found.append(Remedy(f"sandkeep wait {name} --phase archived", "wait until it is archived"))
        case Phase.WAKING:
            found.append(Remedy(f"sandkeep wait {name} --phase stopped --phase paused", "wait until it is back"))
        case Phase.ARCHIVED:
            found.append(Remedy(f"sandkeep wake {name}", "bring it back as it was"))
            found.append(Remedy(f"sandkeep wake {name} --disk-only", "bring it back without its memory"))
        case Phase.STOPPING:
            found.append(Remedy(f"sandkeep wait {name} --phase stopped", "wait until it is stopped"))
        case Phase.RUNNING:
            found.append(Remedy(f"sandkeep exec {name} -- COMMAND", "run a command in it"))
            pause = "" if full else " --hold memory"
            found.append(Remedy(f"sandkeep pause {name}{pause}", "freeze it"))
            if sandbox.spec.persistence is not Persistence.EPHEMERAL:
                found.append(Remedy(f"sandkeep stop {name}", "end its machine and keep its disk"))
        case Phase.PAUSED:
            found.append(Remedy(f"sandkeep resume {name}", "go on where it was paused"))
            if sandbox.status.hold is Hold.DISK:
                found.append(Remedy(f"sandkeep start {name}", "start it from its disk, where its memory cannot go on"))
            if sandbox.spec.persistence is not Persistence.EPHEMERAL:
                found.append(Remedy(f"sandkeep stop {name}", "drop its memory and keep its disk"))
        case Phase.STOPPED if sandbox.restarts.next_at is not None:
            found.append(Remedy(f"sandkeep start {name}", "start it now, and forget its failures"))
            found.append(Remedy(f"sandkeep stop {name}", "call the planned start off"))
            found.append(Remedy(f"sandkeep update {name} --on-failure stop", "never start it again by itself"))
        case Phase.FAILED if is_lost(sandbox):
            found.append(Remedy("sandkeep node quarantine list", "see whether its disk is there"))
            found.append(Remedy(f"sandkeep node quarantine restore {sandbox.id}", "go on from that disk"))
        case Phase.STOPPED | Phase.FAILED:
            found.append(Remedy(f"sandkeep start {name}", "start it from its disk"))
    found += _against_conditions(sandbox, name)
    if status.phase not in (Phase.DELETING, Phase.DELETED):
        found.append(
            Remedy(f"sandkeep delete {name}", "delete it for good, its disk too, also one in quarantine")
            if is_lost(sandbox)
            else Remedy(f"sandkeep delete {name}", "delete it for good, its disk too")
        )
    return found


def what_wakes(sandbox: Sandbox) -> str:
    """The command for one that does not run."""
    if is_lost(sandbox):
        return f"sandkeep why {sandbox.name or sandbox.id}"
    verbs = {Phase.PAUSED: "resume", Phase.STOPPED: "start", Phase.FAILED: "start", Phase.ARCHIVED: "wake"}
    verb = verbs.get(sandbox.status.phase, "wait")
    return f"sandkeep {verb} {sandbox.name or sandbox.id}"


def is_lost(sandbox: Sandbox) -> bool:
    """The node has no record of it."""
    condition = sandbox.status.condition(ConditionKind.RECORD_LOST)
    return condition is not None and condition.value


def _against_conditions(sandbox: Sandbox, name: str) -> list[Remedy]:
    found = []
    for condition in _worth_telling(sandbox.status):
        match condition.kind:
            case ConditionKind.ARCHIVE_DAMAGED:
                again = f"sandkeep archive --verify {name}"
                found.append(Remedy(again, "look again, after what is damaged was put back from a copy of the store"))
            case ConditionKind.GUEST_READY:
                found.append(
                    Remedy(f"sandkeep stop {name}", "end the machine that does not answer; start makes another")
                )
            case ConditionKind.OUT_OF_MEMORY:
                found.append(Remedy(f"sandkeep update {name} --memory SIZE", "give it more memory"))
            case ConditionKind.MEMORY_SAVABLE:
                found.append(
                    Remedy(f"sandkeep pause {name} --or-disk", "pause it, or stop it where memory cannot be saved")
                )
            case ConditionKind.CRASH_LOOP:
                found.append(Remedy(f"sandkeep events {name}", "see how its machines ended"))
    return found
