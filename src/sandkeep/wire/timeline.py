"""Timelines on the wire."""

from datetime import datetime

from pydantic import Field

from sandkeep.wire.shape import Asked, Duration, Given, ShortText, Size
from sandkeep.wire.snapshots import SnapshotKind, SnapshotView


class TimelineSet(Asked):
    """The whole timeline: what is left out is off. `every`: a snapshot so long after the last one, if anything changed; of
    `kind` full with the memory of what runs, which resets its outside connections.
    `on_exit`, `on_out_of_memory`, `on_crash`: one when somebody stops its machine, when memory ran out, when its machine ended
    by itself. `keep_...`: how many of the automatic ones stay, by each rule; without any of them, and without a `budget`
    (bytes that its snapshots may hold), nothing goes. Nothing goes that is younger than `min_age` (1h), has a name, or one of
    `keep_tags`. `asked_too`: those that somebody asked for go by these rules as well, unless they have a name."""

    every: Duration | None = None
    kind: SnapshotKind = "disk"
    on_exit: bool = False
    on_out_of_memory: bool = False
    on_crash: bool = False
    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_tags: list[ShortText] = Field(default_factory=list, max_length=32)
    min_age: Duration = "1h"
    budget: Size | None = None
    asked_too: bool = False


class TimelineRules(Given):
    """As it was set, in seconds and bytes."""

    every: float | None
    kind: SnapshotKind
    on_exit: bool
    on_out_of_memory: bool
    on_crash: bool
    keep_last: int
    keep_hourly: int
    keep_daily: int
    keep_weekly: int
    keep_monthly: int
    keep_tags: list[str]
    min_age: float
    budget: int | None
    asked_too: bool


class TimelineView(TimelineRules):
    """`next_at`: when the next snapshot is due, if its disk changes until then."""

    sandbox_id: str
    next_at: datetime | None


class PruneRequest(Asked):
    """`plan`: only say what would go."""

    plan: bool = False


class VerdictView(Given):
    """`keep`: the rules by which it stays; without one it goes, and `why` says why."""

    snapshot: SnapshotView
    keep: list[str]
    why: str


class PruneView(Given):
    """Oldest first. `done`: it was not only a plan. `total`: bytes that all of them hold and nothing else
    does, null while nobody knows."""

    items: list[VerdictView]
    done: bool
    total: int | None
    budget: int | None
