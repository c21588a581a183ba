"""The platform itself on the wire: versions, runtimes, capacity, problems."""

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from sandkeep.wire.shape import Asked, Given, ShortText

API_VERSION = 1
OLDEST_CLIENT = "0.1.0"


class VersionView(Given):
    """A client older than `oldest_client` should be upgraded."""

    version: str
    api: int
    oldest_client: str
    runner: str | None


class RuntimeView(Given):
    """One row of the capability matrix, from the driver's own record."""

    name: str
    available: bool
    reason: str
    version: str
    isolation: str
    trust: str
    persistence: list[str]
    holds: list[str]
    unsupported: dict[str, str]
    notes: list[str]


class CapacityView(Given):
    """Bytes and counts."""

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


class NodeView(Given):
    """paired: server and node are of one installation; else `reason` says why not, and what only one of them knows is left
    alone. sandboxes: those that both know; unknown: those that the node alone knows (adoption brings them back);
    quarantined: what its pool holds without any record."""

    node_id: str
    version: str
    disk_driver: str
    disk_notes: list[str]
    capacity: CapacityView
    paired: bool = True
    reason: str = ""
    sandboxes: int = 0
    unknown: int = 0
    quarantined: int = 0


class AdoptionView(Given):
    """A sandbox that the node alone knows. `name`: what it will be called here, which is not `name_on_node` where that is
    taken; `held`: why it is not adopted unless it is named."""

    id: str
    name: str | None
    name_on_node: str | None
    phase: str
    hold: str | None
    runtime: str
    persistence: str
    template: str
    labels: dict[str, str]
    epoch: int
    notes: list[str]
    held: str


class AdoptionRequest(Asked):
    """`ids`: null for all that nothing holds back, which also pairs server and node. `names`: id -> another name."""

    ids: list[ShortText] | None = None
    names: dict[ShortText, ShortText] = Field(default_factory=dict)


class QuarantinedView(Given):
    """Something in the pool that no record names. what: disk, generation (a moment of a disk, perhaps with memory), template, or
    snapshot record (that cannot be read). Bytes."""

    id: str
    what: str
    owner: str | None
    size: int | None
    changed_at: datetime | None
    template: str | None
    limit: int | None
    generations: list[str]


class QuarantineRestore(Asked):
    """Name and runtime of the sandbox, where the server does not know it any more."""

    name: ShortText | None = None
    runtime: Literal["gvisor", "runc"] | None = None


class Problem(Given):
    """RFC 9457 problem details. `code` is stable, `hint` says what to do next; more members may follow."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str | None = None
    details: dict[str, Any] | None = None
