"""Timelines between the wire and our words. Used by the routes of timelines and of sandboxes."""

from typing import Any

from sandkeep.domain.quantities import parse_duration, parse_size
from sandkeep.domain.snapshot import SnapshotKind
from sandkeep.domain.timeline import Keep, Timeline
from sandkeep.wire.timeline import TimelineRules, TimelineSet


def asked_for(asked: TimelineSet) -> Timeline:
    """Raises InvalidArgument."""
    return Timeline(
        every=None if asked.every is None else parse_duration(asked.every, "every"),
        kind=SnapshotKind(asked.kind),
        on_exit=asked.on_exit,
        on_out_of_memory=asked.on_out_of_memory,
        on_crash=asked.on_crash,
        keep=Keep(asked.keep_last, asked.keep_hourly, asked.keep_daily, asked.keep_weekly, asked.keep_monthly),
        keep_tags=tuple(asked.keep_tags),
        min_age=parse_duration(asked.min_age, "min_age"),
        budget=None if asked.budget is None else parse_size(asked.budget, "budget"),
        asked_too=asked.asked_too,
    )


def rules(timeline: Timeline) -> TimelineRules | None:
    """None where it is off."""
    return None if timeline == Timeline() else TimelineRules(**fields(timeline))


def fields(timeline: Timeline) -> dict[str, Any]:
    """Of a TimelineRules."""
    keep = timeline.keep
    return {
        "every": timeline.every,
        "kind": timeline.kind.value,
        "on_exit": timeline.on_exit,
        "on_out_of_memory": timeline.on_out_of_memory,
        "on_crash": timeline.on_crash,
        "keep_last": keep.last,
        "keep_hourly": keep.hourly,
        "keep_daily": keep.daily,
        "keep_weekly": keep.weekly,
        "keep_monthly": keep.monthly,
        "keep_tags": list(timeline.keep_tags),
        "min_age": timeline.min_age,
        "budget": timeline.budget,
        "asked_too": timeline.asked_too,
    }
