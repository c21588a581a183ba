"""Snapshots on the wire."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from sandkeep.wire.shape import Asked, Given, ShortText

SnapshotKind = Literal["disk", "full"]
Cause = Literal["asked", "schedule", "fork", "rollback", "promote", "exec", "exit", "out_of_memory", "crash"]


class SnapshotCreate(Asked):
    """`name`: unique among the snapshots of its sandbox; without one it goes by its id. `tags` are words to find it by, and
    to keep it by. `kind`: `full` keeps memory and processes, too, of a running or paused sandbox whose runtime can; it resets
    the sandbox's outside connections. `cause`: exec for one that is made before a command, so that the timeline's rules
    concern it."""

    kind: SnapshotKind = "disk"
    name: ShortText | None = None
    tags: list[ShortText] = Field(default_factory=list, max_length=32)
    cause: Literal["asked", "exec"] = "asked"


class SnapshotView(Given):
    """A point in time of a sandbox, which it owns. `parent`: the snapshot that its disk came from when this one was made,
    null for the first. `held`: seconds that its processes stood still for it; `connections_reset`: and whether its
    connections to the outside were reset by it. `reason`: why it was made; `cause`: the same in
    one word. `archived`: bytes of it in the object store, null while it is on its node; what needs its disk then has to wake
    it first. `written`: bytes that it has and its parent has not (the first one: its template); `freed`: bytes that deleting
    it would give back; both null while nobody knows, else as of `measured_at`."""

    id: str
    sandbox_id: str
    project_id: str
    name: str | None
    kind: SnapshotKind
    tags: list[str]
    parent: str | None
    held: float
    connections_reset: bool = False
    reason: str
    cause: Cause = "asked"
    written: int | None = None
    freed: int | None = None
    measured_at: datetime | None = None
    archived: int | None = None
    created_at: datetime


class CommitRequest(Asked):
    """`name`: of the snapshot that it becomes."""

    name: ShortText | None = None


class RollbackRequest(Asked):
    """`snapshot`: name or id. `kind`: `disk` leaves the memory of a full one aside. The moment before is kept as a snapshot of
    its own, unless `keep_before` is false."""

    snapshot: ShortText
    kind: SnapshotKind | None = None
    keep_before: bool = True


class PromoteRequest(Asked):
    """`into`: the sandbox whose state it becomes, by name or id. `kind`: with memory and processes (`full`) or without; null:
    with, where there are some and the runtime can. `delete_others`: the other forks of that sandbox."""

    into: ShortText
    kind: SnapshotKind | None = None
    delete_others: bool = False


class ForkRequest(Asked):
    """`snapshot`: name or id; without one, a snapshot is made first and stays. `kind`: with memory and processes (`full`) or
    without; null: with, where there are some and the runtime can. `name`: of the fork; of several NAME-1,
    NAME-2, ..."""

    snapshot: ShortText | None = None
    kind: SnapshotKind | None = None
    count: int = Field(1, ge=1, le=100)
    name: ShortText | None = None
