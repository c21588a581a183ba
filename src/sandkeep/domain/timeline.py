"""A sandbox's timeline: when snapshots of it are made by rule, and which of them stay. Pure; what is planned here control does.

Retention is that of restic and btrbk: of the latest N hours (days, weeks, months) that have a snapshot, the last one of each
stays. Hours and days are UTC's. It concerns what the platform made by itself; what somebody asked for stays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sandkeep.domain.errors import InvalidArgument
from sandkeep.domain.snapshot import Cause, Snapshot, SnapshotKind, check_tags

MOST_KEPT = 1000
MIN_EVERY, MAX_AGE = 5.0, 10 * 365 * 86400.0


@dataclass(frozen=True)
class Keep:
    """How many stay, by each rule; 0: the rule keeps none. What one rule keeps no other lets go."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    @property
    def any(self) -> bool:
        return any((self.last, self.hourly, self.daily, self.weekly, self.monthly))


@dataclass(frozen=True)
class Timeline:
    """every: seconds between scheduled snapshots, None for none. on_...: one is made when its machine ends because
    somebody stops it, is killed for want of memory (or a process in it), ends by itself. Without a count in `keep` and without
    a budget nothing goes. min_age: seconds below which nothing goes, so that what was kept before one command does not go
    with the next; budget: bytes that its snapshots may hold. asked_too: also those that somebody asked for go by these
    rules, if they have no name."""

    every: float | None = None
    kind: SnapshotKind = SnapshotKind.DISK
    on_exit: bool = False
    on_out_of_memory: bool = False
    on_crash: bool = False
    keep: Keep = field(default_factory=Keep)
    keep_tags: tuple[str, ...] = ()
    min_age: float = 3600.0
    budget: int | None = None
    asked_too: bool = False

    @property
    def prunes(self) -> bool:
        return self.keep.any or self.budget is not None

    @property
    def at_ends(self) -> bool:
        """Whether the node makes some by itself."""
        return self.on_exit or self.on_out_of_memory or self.on_crash

    def wants(self, cause: Cause) -> bool:
        """Whether one is made at such an end of a machine."""
        wanted = {Cause.EXIT: self.on_exit, Cause.OUT_OF_MEMORY: self.on_out_of_memory, Cause.CRASH: self.on_crash}
        return wanted.get(cause, False)

    def check(self) -> None:
        """Raises InvalidArgument."""
        if self.every is not None and not MIN_EVERY <= self.every <= MAX_AGE:
            raise InvalidArgument(f"every {self.every:g} s is not between {MIN_EVERY:g} s and ten years", field="every")
        if not 0 <= self.min_age <= MAX_AGE:
            raise InvalidArgument(f"min_age {self.min_age:g} s is not between 0 and ten years", field="min_age")
        for name in ("last", "hourly", "daily", "weekly", "monthly"):
            if not 0 <= getattr(self.keep, name) <= MOST_KEPT:
                raise InvalidArgument(f"keep_{name} is not between 0 and {MOST_KEPT}", field=f"keep_{name}")
        if self.budget is not None and not 0 < self.budget < 1 << 63:
            raise InvalidArgument("the budget is a number of bytes above 0", field="budget")
        check_tags(self.keep_tags, field="keep_tags")


def timeline_from(data: dict[str, Any]) -> Timeline:
    """Of what `dataclasses.asdict` made of one; {}: of a version that had none."""
    if not data:
        return Timeline()
    kind, keep, tags = SnapshotKind(data["kind"]), Keep(**data["keep"]), tuple(data["keep_tags"])
    return Timeline(**{**data, "kind": kind, "keep": keep, "keep_tags": tags})


@dataclass(frozen=True)
class Share:
    """Bytes that nothing holds but snapshots of one sandbox: the oldest of them is `first`, the newest `last`."""

    first: str
    last: str
    size: int


@dataclass(frozen=True)
class SnapshotSize:
    """Bytes, None where nobody can say. written: what it has that its parent has not (the first one: its template);
    freed: what its deletion would give back."""

    written: int | None = None
    freed: int | None = None


@dataclass(frozen=True)
class SnapshotSizes:
    """Of the snapshots of one sandbox, as of `at` (seconds since the epoch)."""

    at: float
    sizes: dict[str, SnapshotSize] = field(default_factory=dict)
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """keep: the rules by which it stays; without one it goes, and `why` says by what."""

    snapshot: Snapshot
    keep: tuple[str, ...] = ()
    why: str = ""

    @property
    def stays(self) -> bool:
        return bool(self.keep)


_PERIODS: tuple[tuple[str, Callable[[datetime], tuple[int, ...]]], ...] = (
    ("hourly", lambda at: (at.year, at.month, at.day, at.hour)),
    ("daily", lambda at: (at.year, at.month, at.day)),
    ("weekly", lambda at: at.isocalendar()[:2]),
    ("monthly", lambda at: (at.year, at.month)),
)


def plan(
    snapshots: Sequence[Snapshot],
    policy: Timeline,
    now: float,
    shares: Sequence[Share] = (),
    needed: frozenset[str] = frozenset(),
) -> list[Verdict]:
    """For each snapshot of a sandbox, oldest first. `shares`: what they hold, for the budget; `needed`: ids of those that
    something under way needs."""
    ordered = sorted(snapshots, key=lambda one: (one.created_at, one.id))
    protected = {one.id: _protected(one, policy, now, needed) for one in ordered}
    counted = [one for one in reversed(ordered) if automatic(one, policy)]
    by_count = _by_count(counted, policy)
    keep = {one.id: (*protected[one.id], *by_count.get(one.id, ())) for one in ordered}
    over = [] if policy.budget is None else _over_budget(ordered, keep, counted, protected, policy.budget, shares)
    found = []
    for one in ordered:
        if one.id in over:
            found.append(Verdict(one, why="over the budget"))
        else:
            found.append(Verdict(one, keep[one.id], "" if keep[one.id] else "no rule keeps it"))
    return found


def automatic(snapshot: Snapshot, policy: Timeline) -> bool:
    """Whether the rules concern it. A name is a person's word that it stays."""
    return snapshot.name is None and (snapshot.cause is not Cause.ASKED or policy.asked_too)


def _protected(one: Snapshot, policy: Timeline, now: float, needed: frozenset[str]) -> tuple[str, ...]:
    """What no count and no budget overrules."""
    reasons = []
    if not automatic(one, policy):
        reasons.append("named" if one.name is not None else "asked for")
    reasons += [f"tagged {tag}" for tag in one.tags if tag in policy.keep_tags]
    if now - one.created_at < policy.min_age:
        reasons.append("too young")
    if one.id in needed:
        reasons.append("being forked")
    return tuple(reasons)


def _by_count(counted: Sequence[Snapshot], policy: Timeline) -> dict[str, tuple[str, ...]]:
    """Newest first."""
    if not policy.keep.any:
        return {one.id: ("no count is set",) for one in counted}
    reasons: dict[str, list[str]] = {one.id: ["last"] for one in counted[: policy.keep.last]}
    for name, period in _PERIODS:
        left: int = getattr(policy.keep, name)
        before: tuple[int, ...] | None = None
        for one in counted:
            if not left:
                break
            found = period(datetime.fromtimestamp(one.created_at, UTC))
            if found != before:
                reasons.setdefault(one.id, []).append(name)
                before, left = found, left - 1
    return {identifier: tuple(names) for identifier, names in reasons.items()}


def _over_budget(
    ordered: Sequence[Snapshot],
    keep: dict[str, tuple[str, ...]],
    counted: Sequence[Snapshot],
    protected: dict[str, tuple[str, ...]],
    budget: int,
    shares: Sequence[Share],
) -> set[str]:
    """Those that stay by count alone, the oldest first, until what is left fits. The newest one is never among them."""
    staying = {one.id for one in ordered if keep[one.id]}
    gone: set[str] = set()
    for one in reversed(counted[1:]):
        if total([each.id for each in ordered], staying, shares) <= budget:
            break
        if one.id in staying and not protected[one.id]:
            staying.discard(one.id)
            gone.add(one.id)
    return gone


def total(ordered: Sequence[str], staying: set[str], shares: Sequence[Share]) -> int:
    """Bytes that the snapshots in `staying` hold, of all in `ordered`, oldest first."""
    place = {identifier: number for number, identifier in enumerate(ordered)}
    before = [0]
    for identifier in ordered:
        before.append(before[-1] + (identifier in staying))
    return sum(
        share.size
        for share in shares
        if share.first in place and share.last in place and before[place[share.last] + 1] > before[place[share.first]]
    )
