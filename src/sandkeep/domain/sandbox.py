"""A sandbox: what was asked (Spec), what was observed (Status), and how one phase may follow another."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from sandkeep.domain.errors import InvalidArgument
from sandkeep.domain.names import check_env, check_labels
from sandkeep.domain.quantities import GIB, MIB, TIB, format_size
from sandkeep.domain.restart import OnFailure, Restarts
from sandkeep.domain.timeline import Timeline


class Persistence(StrEnum):
    """What survives when the machine goes."""

    EPHEMERAL = "ephemeral"
    VOLUME = "volume"
    SNAPSHOT = "snapshot"
    FULL = "full"


class RuntimeKind(StrEnum):
    GVISOR = "gvisor"
    RUNC = "runc"


class NetworkMode(StrEnum):
    INTERNET = "internet"
    NONE = "none"


class OnExpiry(StrEnum):
    """What ends a lifetime: `default` is delete for ephemeral, stop for volume, pause for full."""

    DEFAULT = "default"
    DELETE = "delete"


class Hold(StrEnum):
    """Where a paused sandbox's memory is."""

    MEMORY = "memory"
    DISK = "disk"


class Phase(StrEnum):
    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ARCHIVING = "archiving"
    ARCHIVED = "archived"
    WAKING = "waking"
    DELETING = "deleting"
    DELETED = "deleted"
    FAILED = "failed"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.NEW: frozenset({Phase.STARTING, Phase.FAILED, Phase.DELETING}),
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.PAUSED, Phase.STOPPED, Phase.FAILED, Phase.DELETING}),
    Phase.RUNNING: frozenset({Phase.PAUSING, Phase.STOPPING, Phase.STOPPED, Phase.FAILED, Phase.DELETING}),
    Phase.PAUSING: frozenset({Phase.PAUSED, Phase.RUNNING, Phase.STOPPED, Phase.FAILED, Phase.DELETING}),
    Phase.PAUSED: frozenset(
        {
            Phase.RESUMING,
            Phase.STOPPING,
            Phase.STOPPED,
            Phase.PAUSING,
            Phase.ARCHIVING,
            Phase.FAILED,
            Phase.DELETING,
        }
    ),
    Phase.RESUMING: frozenset({Phase.RUNNING, Phase.PAUSED, Phase.STOPPED, Phase.FAILED, Phase.DELETING}),
    Phase.STOPPING: frozenset({Phase.STOPPED, Phase.RUNNING, Phase.PAUSED, Phase.FAILED, Phase.DELETING}),
    Phase.STOPPED: frozenset({Phase.STARTING, Phase.ARCHIVING, Phase.FAILED, Phase.DELETING}),
    Phase.ARCHIVING: frozenset({Phase.ARCHIVED, Phase.STOPPED, Phase.PAUSED, Phase.FAILED, Phase.DELETING}),
    Phase.ARCHIVED: frozenset({Phase.WAKING, Phase.FAILED, Phase.DELETING}),
    Phase.WAKING: frozenset({Phase.STOPPED, Phase.PAUSED, Phase.ARCHIVED, Phase.FAILED, Phase.DELETING}),
    Phase.FAILED: frozenset(
        {
            Phase.STARTING,
            Phase.RESUMING,
            Phase.RUNNING,
            Phase.PAUSED,
            Phase.STOPPING,
            Phase.STOPPED,
            Phase.ARCHIVED,
            Phase.DELETING,
        }
    ),
    Phase.DELETING: frozenset({Phase.DELETED}),
    Phase.DELETED: frozenset(),
}

TRANSITIONAL = frozenset(
    {
        Phase.STARTING,
        Phase.PAUSING,
        Phase.RESUMING,
        Phase.STOPPING,
        Phase.ARCHIVING,
        Phase.WAKING,
        Phase.DELETING,
    }
)
"""Phases with a deadline and a way out."""

DEADLINES: dict[Phase, float] = {
    Phase.NEW: 60.0,
    Phase.STARTING: 120.0,
    Phase.PAUSING: 300.0,
    Phase.RESUMING: 300.0,
    Phase.STOPPING: 60.0,
    Phase.ARCHIVING: 3600.0,
    Phase.WAKING: 3600.0,
    Phase.DELETING: 120.0,
}
"""Seconds until the reconciler takes over."""

MIN_MEMORY, MAX_MEMORY = 64 * MIB, 4 * TIB
MIN_DISK, MAX_DISK = 64 * MIB, 64 * TIB
MIN_CPUS, MAX_CPUS = 0.1, 256.0
MIN_PIDS, MAX_PIDS = 16, 1 << 20
MAX_LIFETIME = 10 * 365 * 86400.0


class Commit(StrEnum):
    """Of persistence=snapshot: what becomes of a session when it is stopped. The disk goes back to where it started (never,
    manual: unless somebody committed it meanwhile), or is where the next one starts."""

    NEVER = "never"
    ON_STOP = "on-stop"
    MANUAL = "manual"


@dataclass(frozen=True)
class Limits:
    """cpus: cores; memory, disk: bytes; pids: processes and threads."""

    cpus: float = 2.0
    memory: int = GIB
    disk: int = 8 * GIB
    pids: int = 4096

    def check(self) -> None:
        if not MIN_CPUS <= self.cpus <= MAX_CPUS:
            raise InvalidArgument(f"cpus {self.cpus:g} is not between {MIN_CPUS:g} and {MAX_CPUS:g}", field="cpus")
        for name, value, low, high in (
            ("memory", self.memory, MIN_MEMORY, MAX_MEMORY),
            ("disk", self.disk, MIN_DISK, MAX_DISK),
        ):
            if not low <= value <= high:
                raise InvalidArgument(
                    f"{name} of {value} bytes is not between {format_size(low)} and {format_size(high)}",
                    hint=f"sizes are bytes or carry a unit: --{name} 512MiB",
                    field=name,
                )
        if not MIN_PIDS <= self.pids <= MAX_PIDS:
            raise InvalidArgument(f"pids {self.pids} is not between {MIN_PIDS} and {MAX_PIDS}", field="pids")


@dataclass(frozen=True)
class Lifetime:
    """ttl: seconds from creation (or from the last change of it), None for none. grace: seconds that an ephemeral
    sandbox outlives its vanished client, None when it has no client to watch."""

    ttl: float | None = None
    on_expiry: OnExpiry = OnExpiry.DEFAULT
    grace: float | None = None

    def check(self) -> None:
        for name, value in (("ttl", self.ttl), ("grace", self.grace)):
            if value is not None and not 1 <= value <= MAX_LIFETIME:
                raise InvalidArgument(f"{name} of {value:g} s is not between 1 s and ten years", field=name)

    def ends(self, since: float) -> float | None:
        """When it is over, if it began (or its client was last heard) then."""
        ends = [since + seconds for seconds in (self.ttl, self.grace) if seconds is not None]
        return min(ends) if ends else None


@dataclass(frozen=True)
class Spec:
    """What was asked. `template` is a template id once the sandbox exists, `template_name` what the caller wrote."""

    template: str
    template_name: str
    runtime: RuntimeKind = RuntimeKind.GVISOR
    persistence: Persistence = Persistence.VOLUME
    limits: Limits = field(default_factory=Limits)
    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    network: NetworkMode = NetworkMode.INTERNET
    lifetime: Lifetime = field(default_factory=Lifetime)
    pause_or_disk: bool = False
    on_failure: OnFailure = OnFailure.STOP
    commit: Commit | None = None
    """Of persistence=snapshot alone."""
    timeline: Timeline = field(default_factory=Timeline)

    def check(self) -> None:
        """Raises InvalidArgument for values that no host could satisfy."""
        self.limits.check()
        self.lifetime.check()
        self.timeline.check()
        check_env(self.env)
        check_labels(self.labels)
        if self.lifetime.grace is not None and self.persistence is not Persistence.EPHEMERAL:
            raise InvalidArgument("only an ephemeral sandbox can follow its client", field="grace")
        if (self.commit is not None) != (self.persistence is Persistence.SNAPSHOT):
            raise InvalidArgument(
                "commit says what becomes of a session: it goes with persistence=snapshot, and that with it",
                hint="--persistence snapshot --commit never|on-stop|manual",
                field="commit",
            )
        if self.persistence is Persistence.EPHEMERAL and self.on_failure is not OnFailure.STOP:
            raise InvalidArgument(
                f"an ephemeral sandbox is deleted when its machine ends: on_failure={self.on_failure} cannot be",
                hint="leave on_failure out, or choose persistence=volume",
                field="on_failure",
            )


def default_on_failure(persistence: Persistence) -> OnFailure:
    disk_survives = persistence in (Persistence.VOLUME, Persistence.FULL)
    return OnFailure.RESTART if disk_survives else OnFailure.STOP


def default_commit(persistence: Persistence) -> Commit | None:
    return Commit.NEVER if persistence is Persistence.SNAPSHOT else None


def differences(asked: Spec, existing: Spec) -> list[str]:
    """Fields in which a get-or-create by name asks for something else than what exists."""
    fields = {
        "template": (asked.template, existing.template),
        "runtime": (asked.runtime, existing.runtime),
        "persistence": (asked.persistence, existing.persistence),
        "cpus": (asked.limits.cpus, existing.limits.cpus),
        "memory": (asked.limits.memory, existing.limits.memory),
        "disk": (asked.limits.disk, existing.limits.disk),
        "pids": (asked.limits.pids, existing.limits.pids),
        "env": (asked.env, existing.env),
        "labels": (asked.labels, existing.labels),
        "network": (asked.network, existing.network),
        "ttl": (asked.lifetime.ttl, existing.lifetime.ttl),
        "on_expiry": (asked.lifetime.on_expiry, existing.lifetime.on_expiry),
        "pause_or_disk": (asked.pause_or_disk, existing.pause_or_disk),
        "on_failure": (asked.on_failure, existing.on_failure),
        "commit": (asked.commit, existing.commit),
    }
    if asked.timeline != Timeline():  # who asks for none takes it as it is
        fields["timeline"] = (asked.timeline, existing.timeline)
    return [name for name, (left, right) in fields.items() if left != right]


class ConditionKind(StrEnum):
    DISK_READY = "DiskReady"
    GUEST_READY = "GuestReady"
    MEMORY_SAVABLE = "MemorySavable"
    CONNECTIONS_RESET = "ConnectionsReset"
    OUT_OF_MEMORY = "OutOfMemory"
    MEMORY_LOST = "MemoryLost"
    CRASH_LOOP = "CrashLoop"
    RESCUE = "Rescue"
    RECORD_LOST = "RecordLost"
    ARCHIVE_DAMAGED = "ArchiveDamaged"


@dataclass(frozen=True)
class Condition:
    """A named fact with its reason and time (seconds since the epoch)."""

    kind: ConditionKind
    value: bool
    reason: str
    at: float


@dataclass(frozen=True)
class Status:
    """What was observed. `reason` says why the sandbox is in its phase."""

    phase: Phase = Phase.NEW
    hold: Hold | None = None
    reason: str = ""
    since: float = 0.0
    conditions: tuple[Condition, ...] = ()

    def condition(self, kind: ConditionKind) -> Condition | None:
        return next((c for c in self.conditions if c.kind is kind), None)

    def with_condition(self, condition: Condition) -> "Status":
        return replace(self, conditions=(*self.without(condition.kind).conditions, condition))

    def without(self, kind: ConditionKind) -> "Status":
        return replace(self, conditions=tuple(c for c in self.conditions if c.kind is not kind))


@dataclass(frozen=True)
class Sandbox:
    """Times are seconds since the epoch."""

    id: str
    project_id: str
    name: str | None
    spec: Spec
    status: Status
    epoch: int
    created_at: float
    updated_at: float
    expires_at: float | None = None
    operation: str | None = None
    restarts: Restarts = field(default_factory=Restarts)
    origin: str | None = None
    """The snapshot that it was forked from."""
    origin_memory: bool = False
    """And whether with its memory."""


def may_follow(before: Phase, after: Phase) -> bool:
    return after in TRANSITIONS[before]
