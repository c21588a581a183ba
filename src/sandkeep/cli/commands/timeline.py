"""sandkeep timeline"""

from typing import TYPE_CHECKING, Any

import click

from sandkeep.cli.options import sandbox_argument, timeline_given, timeline_options
from sandkeep.cli.output import clock, counted, size, span, table, working
from sandkeep.cli.session import Session, pass_session

if TYPE_CHECKING:
    from sandkeep.wire.timeline import PruneView, TimelineRules, TimelineView

_PERIODS = ("last", "hourly", "daily", "weekly", "monthly")


@click.group()
def timeline() -> None:
    """Show and set when snapshots of a sandbox are made by rule, and which of them stay.

    \b
    Examples:
      sandkeep timeline set dev --every 1h --keep-hourly 24 --keep-daily 7
      sandkeep timeline prune dev --plan
    """


@timeline.command()
@sandbox_argument
@pass_session
def show(session: Session, ref: str) -> None:
    """Show the timeline of a sandbox.

    \b
    Examples:
      sandkeep timeline show dev
      sandkeep timeline show dev --json | jq .next_at
    """
    view = session.sandbox(ref).timeline.show()
    session.say(shown(view), view)


@timeline.command("set")
@sandbox_argument
@timeline_options
@click.option("--off", is_flag=True, help="No snapshot is made or goes by rule any more; those that are there stay.")
@pass_session
def set_(
    session: Session,
    /,
    ref: str,
    off: bool,
    **rules: Any,
) -> None:
    """Change what is given; the rest stays.

    What is counted are the snapshots that Sandkeep made by itself: on schedule, before a rollback or a command, for a fork, at
    the end of a machine. Without a --keep-... count and without a budget none of them goes.

    \b
    Examples:
      sandkeep timeline set dev --every 1h --keep-hourly 24 --keep-daily 7 --keep-weekly 4
      sandkeep timeline set dev --on-exit --on-crash --keep-last 10 --budget 5G
      sandkeep timeline set dev --off
    """
    given = timeline_given(rules)
    if bool(given) == off:
        raise click.UsageError("nothing to change" if not off else "--off goes alone")
    found = session.sandbox(ref)
    view = found.timeline.off() if off else found.timeline.set(**given)
    session.say(shown(view), view)
    note_what_grows(session, view)


@timeline.command()
@sandbox_argument
@click.option("--plan", is_flag=True, help="Only show what would go, and by which rules the others stay.")
@pass_session
def prune(session: Session, ref: str, plan: bool) -> None:
    """Let go now of what the timeline keeps no longer, as happens by itself after each snapshot.

    \b
    Examples:
      sandkeep timeline prune dev --plan
      sandkeep timeline prune dev --json | jq '.items[] | select(.keep == []).snapshot.id'
    """
    with working(session, f"pruning snapshots of {ref}"):
        view = session.sandbox(ref).timeline.prune(plan=plan)
    session.say(_verdicts(view), view)
    gone = sum(not item.keep for item in view.items)
    total = "" if view.total is None else f"; all of them held {size(view.total)}"
    budget = "" if view.budget is None else f", of {size(view.budget)} that they may"
    session.note(f"{counted(gone, 'snapshot')} of {len(view.items)} {'would go' if plan else 'went'}{total}{budget}")


def note_what_grows(session: Session, rules: "TimelineRules") -> None:
    if rules.every is not None and not counts(rules) and rules.budget is None:
        session.note("note: nothing says what goes; from 1,000 snapshots on no more are made")


def shown(view: "TimelineView") -> str:
    lines = [
        ("made", made(view)),
        ("next", clock(view.next_at) if view.next_at else "-"),
        ("keep", kept(view)),
        ("budget", size(view.budget)),
        ("min age", _time(view.min_age) if view.min_age else "-"),
        ("rules", "also for those that you asked for" if view.asked_too else "not for those that you asked for"),
    ]
    return "\n".join(f"{name + ':':<9}{text}" for name, text in lines)


def summary(rules: "TimelineRules") -> str:
    """In one line."""
    budget = "" if rules.budget is None else f", within {size(rules.budget)}"
    return f"snapshots {made(rules)}; stay: {kept(rules)}{budget}"


def made(rules: "TimelineRules") -> str:
    memory = " with memory" if rules.kind == "full" else ""
    when = [f"every {_time(rules.every)}{memory}"] if rules.every is not None else []
    when += [f"on {name}" for name, on in _ends(rules) if on]
    return ", ".join(when) or "none by rule"


def kept(rules: "TimelineRules") -> str:
    keep = [f"{_count(rules, name)} {name}" for name in _PERIODS if _count(rules, name)]
    keep += [f"tagged {tag}" for tag in rules.keep_tags]
    return ", ".join(keep) if keep else "-" if rules.budget is not None else "all"


def _ends(rules: "TimelineRules") -> list[tuple[str, bool]]:
    return [("exit", rules.on_exit), ("out of memory", rules.on_out_of_memory), ("crash", rules.on_crash)]


def _count(rules: "TimelineRules", period: str) -> int:
    return int(getattr(rules, f"keep_{period}"))


def counts(rules: "TimelineRules") -> bool:
    return any(_count(rules, period) for period in _PERIODS)


def _time(seconds: float) -> str:
    """In one unit where nothing is lost by that, else in seconds."""
    unit = next((length for length in (86400, 3600, 60) if seconds >= length), 1)
    return f"{seconds:g}s" if seconds % unit else span(seconds)


def _verdicts(view: "PruneView") -> str:
    if not view.items:
        return "no snapshots"
    rows = [
        [
            item.snapshot.name or item.snapshot.id,
            clock(item.snapshot.created_at),
            size(item.snapshot.freed),
            item.snapshot.reason or "-",
            f"stays: {', '.join(item.keep)}" if item.keep else f"goes: {item.why}",
        ]
        for item in view.items
    ]
    return table(("SNAPSHOT", "MADE", "FREES", "REASON", "WHAT"), rows)
