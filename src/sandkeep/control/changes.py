"""Which changes of a sandbox are possible, and what becomes of its spec by an update."""

from dataclasses import dataclass, replace

from sandkeep.domain.errors import Conflict, NotFound, Unsupported
from sandkeep.domain.restart import OnFailure
from sandkeep.domain.sandbox import Hold, Lifetime, Limits, Persistence, Phase, Sandbox, Spec


@dataclass(frozen=True)
class Changes:
    """What an update asks to change; None leaves as is."""

    labels: dict[str, str] | None = None
    cpus: float | None = None
    memory: int | None = None
    disk: int | None = None
    pids: int | None = None
    lifetime: Lifetime | None = None
    pause_or_disk: bool | None = None
    on_failure: OnFailure | None = None


def changed(spec: Spec, changes: Changes) -> Spec:
    limits = Limits(
        cpus=spec.limits.cpus if changes.cpus is None else changes.cpus,
        memory=spec.limits.memory if changes.memory is None else changes.memory,
        disk=spec.limits.disk if changes.disk is None else changes.disk,
        pids=spec.limits.pids if changes.pids is None else changes.pids,
    )
    return replace(
        spec,
        limits=limits,
        labels=spec.labels if changes.labels is None else changes.labels,
        lifetime=changes.lifetime or spec.lifetime,
        pause_or_disk=spec.pause_or_disk if changes.pause_or_disk is None else changes.pause_or_disk,
        on_failure=changes.on_failure or spec.on_failure,
    )


def as_on_node(sandbox: Sandbox, node: Spec, now: float) -> Sandbox:
    """What an update may have changed there, taken over; a lifetime that it changed counts from now."""
    spec = replace(sandbox.spec, limits=node.limits, lifetime=node.lifetime, labels=node.labels, timeline=node.timeline)
    expires = sandbox.expires_at if node.lifetime == sandbox.spec.lifetime else node.lifetime.ends(now)
    return replace(sandbox, spec=spec, operation=None, updated_at=now, expires_at=expires)


def refuse_deleted(sandbox: Sandbox | None) -> None:
    """Raises NotFound for one that is gone, or will be: nothing but its deletion changes it any more."""
    if sandbox is None or sandbox.status.phase is Phase.DELETING:
        raise NotFound("it is being deleted")


def check_pause(sandbox: Sandbox, hold: Hold) -> None:
    """Raises Conflict, Unsupported."""
    if sandbox.status.phase in (Phase.STOPPED, Phase.FAILED):
        raise Conflict(
            f"it is {sandbox.status.phase}, not running",
            hint=f"start it first: sandkeep start {sandbox.name or sandbox.id}",
        )
    if hold is Hold.DISK and sandbox.spec.persistence is not Persistence.FULL:
        raise Unsupported(
            f"pause to disk keeps memory, and persistence={sandbox.spec.persistence} does not",
            hint="pause with --hold=memory, or stop it (a volume keeps its disk)",
            field="hold",
        )
