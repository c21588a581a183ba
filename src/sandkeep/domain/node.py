"""What a runner reports of its node: sandboxes as observed there, facts in order, what is free."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sandkeep.domain.sandbox import Condition, Hold, Phase, Spec
from sandkeep.domain.snapshot import Cause, SnapshotKind


@dataclass(frozen=True)
class OperationRef:
    """Every mutating call carries one: the same id gives the same outcome, an old epoch is refused (Superseded)."""

    id: str
    epoch: int


@dataclass(frozen=True)
class SandboxOnNode:
    """What the runner needs to know to make a sandbox true on its node."""

    id: str
    project_id: str
    spec: Spec
    name: str | None = None
    created_at: float = 0.0


@dataclass(frozen=True)
class Observed:
    """One sandbox as the node sees it. `phase` is settled (running, paused, stopped, failed), or the -ing phase of an
    operation under way. `exited`: stopped because its machine, of that number, ended by itself; 0 when somebody asked."""

    id: str
    epoch: int
    phase: Phase
    hold: Hold | None = None
    reason: str = ""
    conditions: tuple[Condition, ...] = ()
    disk_used: int | None = None
    exited: int = 0


@dataclass(frozen=True)
class Endpoint:
    """How to reach the agent: opaque to control. `credential` opens nothing but this sandbox."""

    kind: str
    address: str
    port: int
    credential: str = field(repr=False)


class FactKind(StrEnum):
    MACHINE_EXITED = "machine.exited"
    OUT_OF_MEMORY = "machine.out_of_memory"
    PROCESS_KILLED = "process.out_of_memory"
    QUARANTINED = "disk.quarantined"


@dataclass(frozen=True)
class Fact:
    """Something seen on the node, in the order of `seq`; kept until acknowledged."""

    seq: int
    at: float
    kind: FactKind
    sandbox_id: str | None
    epoch: int | None
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Capacity:
    """Bytes and counts: what the node has, has promised, and has free. pool_metadata_free: what names and small
    files in the pool may still take, None where they have no room of their own; data: the folder of its records, with files_free
    None where inodes have no limit; descriptors: of the runner."""

    memory_total: int
    memory_available: int
    memory_promised: int
    memory_limit: int
    pool_total: int
    pool_free: int
    pool_metadata_free: int | None
    pool_reserved: int
    slots_total: int
    slots_free: int
    processes_free: int
    descriptors_free: int
    data_free: int
    files_free: int | None


@dataclass(frozen=True)
class Usage:
    """Live figures of one sandbox; None where there is no machine. cpu_seconds since the machine started; disk_limit: what
    holds now, with the room of a rescue."""

    sandbox_id: str
    cpu_seconds: float | None
    memory: int | None
    processes: int | None
    disk: int | None
    disk_limit: int | None = None


@dataclass(frozen=True)
class Quarantined:
    """Something in the pool that no record names. what: disk, generation or template, or a snapshot's record that is
    unreadable; owner: the sandbox that a generation was made for; changed_at: when Sandkeep last changed its folder;
    template, limit: as far as the pool knows."""

    id: str
    what: str
    owner: str | None = None
    size: int | None = None
    changed_at: float | None = None
    template: str | None = None
    limit: int | None = None
    generations: tuple[str, ...] = ()


@dataclass(frozen=True)
class SnapshotOnNode:
    """A point in time of a sandbox, as this node keeps it. What the control plane says of it is kept for the day on which it
    has lost its database. held: seconds that the guest stood still; archived: bytes of it in the object store, None: it is
    here."""

    id: str
    sandbox_id: str
    kind: SnapshotKind
    created_at: float
    name: str | None = None
    tags: tuple[str, ...] = ()
    parent: str | None = None
    reason: str = ""
    held: float = 0.0
    cause: Cause = Cause.ASKED
    archived: int | None = None


@dataclass(frozen=True)
class TemplateOnNode:
    """A template's disk on this node. size: bytes."""

    id: str
    name: str
    created_at: float
    size: int
    parent: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
