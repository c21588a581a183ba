"""What a timeline lets go of: a pure function, by tables, and by what must hold whatever the rules are."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.domain.errors import InvalidArgument
from sandkeep.domain.snapshot import Cause, Snapshot, SnapshotKind, SnapshotPhase
from sandkeep.domain.timeline import Keep, Share, Timeline, Verdict, plan, timeline_from, total

START = datetime(2026, 3, 30, 0, 30, tzinfo=UTC)
"""A Monday, near the end of a month."""
NOW = START.timestamp() + 400 * 86400


def snap(at: datetime | float, *, id: str = "", cause: Cause = Cause.SCHEDULE, **fields: Any) -> Snapshot:
    created = at if isinstance(at, float) else at.timestamp()
    made = Snapshot(
        id or f"snp_{created:020.3f}",
        "prj_x",
        "sbx_x",
        None,
        SnapshotKind.DISK,
        (),
        None,
        SnapshotPhase.READY,
        "",
        created,
        cause=cause,
    )
    return replace(made, **fields)


def every(step: timedelta, count: int) -> list[Snapshot]:
    return [snap(START + number * step, id=f"{number}") for number in range(count)]


def stay(found: list[Verdict]) -> list[str]:
    return [verdict.snapshot.id for verdict in found if verdict.stays]


HOURS, DAYS = timedelta(hours=1), timedelta(days=1)


@pytest.mark.parametrize(
    ("snapshots", "keep", "expected"),
    [
        (every(HOURS, 5), Keep(last=2), ["3", "4"]),
        (every(HOURS, 5), Keep(last=9), ["0", "1", "2", "3", "4"]),
        (every(HOURS / 4, 12), Keep(hourly=2), ["9", "11"]),  # of each hour the last one
        (every(HOURS / 4, 12), Keep(last=1, hourly=2), ["9", "11"]),  # one that two rules keep counts for both
        (every(12 * HOURS, 8), Keep(daily=3), ["3", "5", "7"]),
        (every(3 * DAYS, 4), Keep(daily=3), ["1", "2", "3"]),  # days without any are none of the three
        (every(DAYS, 15), Keep(weekly=2), ["13", "14"]),  # Monday 2026-04-13 begins a week of its own
        (every(DAYS, 5), Keep(monthly=2), ["1", "4"]),  # the 31st of March, and the 3rd of April
        (every(DAYS, 40), Keep(daily=2, weekly=2, monthly=2), ["31", "34", "38", "39"]),
        ([], Keep(last=3), []),
    ],
)
def test_what_counts_keep(snapshots: list[Snapshot], keep: Keep, expected: list[str]) -> None:
    assert stay(plan(snapshots, Timeline(keep=keep), NOW)) == expected


def test_without_a_count_or_a_budget_nothing_goes() -> None:
    for policy in (Timeline(), Timeline(every=60.0, min_age=5.0, keep_tags=("a",), asked_too=True)):
        assert all(verdict.stays for verdict in plan(every(HOURS, 9), policy, NOW))
        assert not policy.prunes


def test_what_somebody_asked_for_stays() -> None:
    asked = [snap(START, id="asked", cause=Cause.ASKED), snap(START, id="named", cause=Cause.ASKED, name="clean")]
    made = every(HOURS, 4)
    policy = Timeline(keep=Keep(last=1))
    found = {verdict.snapshot.id: verdict for verdict in plan([*asked, *made], policy, NOW)}
    assert (found["asked"].keep, found["named"].keep, found["3"].keep) == (("asked for",), ("named",), ("last",))
    assert stay(list(found.values())) == ["asked", "named", "3"], "and takes no place of the others"
    too = replace(policy, asked_too=True)
    assert stay(plan([*asked, *made], too, NOW)) == ["named", "3"], "a name is a word"


def test_what_no_count_overrules() -> None:
    made = every(HOURS, 6)
    made[0] = replace(made[0], tags=("other", "release"))
    policy = Timeline(keep=Keep(last=1), keep_tags=("release",), min_age=2.6 * 3600)
    now = made[-1].created_at + 1800
    found = plan(made, policy, now, needed=frozenset({"1"}))
    assert [verdict.keep for verdict in found] == [
        ("tagged release",),
        ("being forked",),
        (),
        ("too young",),
        ("too young",),
        ("too young", "last"),
    ]
    assert [verdict.why for verdict in found if verdict.why] == ["no rule keeps it"]


def test_a_clock_that_was_wrong_lets_nothing_go_too_early() -> None:
    ahead = snap(NOW + 86400, id="ahead")
    assert stay(plan([*every(HOURS, 3), ahead], Timeline(keep=Keep(last=1), min_age=60.0), NOW)) == ["ahead"]


def shares(*found: tuple[str, str, int]) -> list[Share]:
    return [Share(*one) for one in found]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (100, ["0", "1", "2", "3"]),
        (99, ["1", "2", "3"]),
        (60, ["1", "2", "3"]),
        (59, ["3"]),  # 1 alone gives nothing back: 1 and 2 together hold the 50
        (1, ["3"]),  # the newest stays
    ],
)
def test_the_oldest_go_until_the_rest_fits(budget: int, expected: list[str]) -> None:
    sizes = shares(("0", "0", 40), ("1", "2", 50), ("3", "3", 10))
    assert stay(plan(every(HOURS, 4), Timeline(budget=budget), NOW, sizes)) == expected


def test_a_budget_passes_over_what_is_protected() -> None:
    made = every(HOURS, 4)
    made[1] = replace(made[1], name="clean", cause=Cause.ASKED)
    sizes = shares(("0", "0", 10), ("0", "1", 10), ("1", "1", 10), ("2", "2", 10), ("3", "3", 10))
    found = plan(made, Timeline(budget=30), NOW, sizes)
    assert stay(found) == ["1", "3"]
    assert {verdict.why for verdict in found if not verdict.stays} == {"over the budget"}
    ids = [one.id for one in made]
    assert total(ids, set(ids), sizes) == 50
    assert total(ids, {"1", "3"}, sizes) == 30


@pytest.mark.parametrize(
    ("field", "policy"),
    [
        ("every", Timeline(every=1.0)),
        ("every", Timeline(every=1e12)),
        ("min_age", Timeline(min_age=-1.0)),
        ("keep_last", Timeline(keep=Keep(last=-1))),
        ("keep_monthly", Timeline(keep=Keep(monthly=1001))),
        ("budget", Timeline(budget=0)),
        ("keep_tags", Timeline(keep_tags=("a\nb",))),
        ("keep_tags", Timeline(keep_tags=("a",) * 33)),
    ],
)
def test_rules_that_make_no_sense(field: str, policy: Timeline) -> None:
    with pytest.raises(InvalidArgument) as refused:
        policy.check()
    assert refused.value.details["field"] == field


def test_a_timeline_of_an_older_version_is_none() -> None:
    assert timeline_from({}) == Timeline()


moments = st.lists(
    st.builds(
        snap,
        st.floats(START.timestamp(), NOW, allow_nan=False).map(float),
        cause=st.sampled_from(Cause),
        tags=st.sampled_from([(), ("kept",), ("other",)]),
        name=st.sampled_from([None, None, None, "clean"]),
    ),
    max_size=25,
    unique_by=lambda one: one.id,
)
counts = st.integers(0, 4)
policies = st.builds(
    Timeline,
    keep=st.builds(Keep, counts, counts, counts, counts, counts),
    keep_tags=st.sampled_from([(), ("kept",)]),
    min_age=st.sampled_from([0.0, 3600.0, 30 * 86400.0]),
    budget=st.none() | st.integers(1, 500),
    asked_too=st.booleans(),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Snapshot], Timeline, list[Share]]:
    made = sorted(draw(moments), key=lambda one: (one.created_at, one.id))
    spans = draw(st.lists(st.tuples(st.integers(0, 24), st.integers(0, 24), st.integers(0, 100)), max_size=12))
    sizes = [
        Share(made[min(one, two)].id, made[max(one, two)].id, size)
        for one, two, size in spans
        if max(one, two) < len(made)
    ]
    return made, draw(policies), sizes


@given(cases())
def test_what_holds_whatever_the_rules_are(case: tuple[list[Snapshot], Timeline, list[Share]]) -> None:
    made, policy, sizes = case
    found = plan(made, policy, NOW, sizes)
    assert [verdict.snapshot for verdict in found] == made, "a verdict for each, oldest first"
    left = [verdict.snapshot for verdict in found if verdict.stays]
    for verdict in found:
        one = verdict.snapshot
        assert verdict.stays or verdict.why
        if one.name or ("kept" in policy.keep_tags and "kept" in one.tags) or NOW - one.created_at < policy.min_age:
            assert verdict.stays
        if one.cause is Cause.ASKED and not policy.asked_too:
            assert verdict.stays
    ids = [one.id for one in made]
    if not policy.prunes:
        assert left == made
    if policy.budget is not None and total(ids, {one.id for one in left}, sizes) > policy.budget:
        by_budget = [v for v in found if v.stays and not set(v.keep) & {"named", "asked for", "too young"}]
        loose = [v for v in by_budget if not any(reason.startswith("tagged") for reason in v.keep)]
        assert len(loose) <= 1, "only what nothing overrules, and the newest"


@given(cases())
def test_a_second_look_finds_nothing(case: tuple[list[Snapshot], Timeline, list[Share]]) -> None:
    made, policy, sizes = case
    left = [verdict.snapshot for verdict in plan(made, replace(policy, budget=None), NOW, sizes) if verdict.stays]
    assert stay(plan(left, replace(policy, budget=None), NOW, sizes)) == [one.id for one in left]


@given(cases(), st.sampled_from(["last", "hourly", "daily", "weekly", "monthly"]))
def test_more_of_a_rule_never_keeps_less(case: tuple[list[Snapshot], Timeline, list[Share]], period: str) -> None:
    made, policy, _ = case
    policy = replace(policy, budget=None, keep=replace(policy.keep, last=policy.keep.last or 1))
    more = replace(policy, keep=replace(policy.keep, **{period: getattr(policy.keep, period) + 1}))
    assert set(stay(plan(made, policy, NOW))) <= set(stay(plan(made, more, NOW)))
