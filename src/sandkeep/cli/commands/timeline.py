"""sandkeep timeline"""

from typing import TYPE_CHECKING, Any

import click

from sandkeep.cli.options import sandbox_argument
from sandkeep.cli.output import clock, counted, size, span, table, working
from sandkeep.cli.session import Session, pass_session

if TYPE_CHECKING:
    from sandkeep.wire.timeline import PruneView, TimelineView

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
@click.option(
    "--every", metavar="T", help="A snapshot so long after the last one, like 1h, if anything changed; or `off`."
)
@click.option(
    "--kind", type=click.Choice(["disk", "full"]), help="What is kept on schedule of what runs: full is with memory."
)
@click.option("--on-exit/--no-on-exit", default=None, help="One when somebody stops its machine.")
@click.option("--on-oom/--no-on-oom", "on_out_of_memory", default=None, help="One when memory ran out.")
@click.option("--on-crash/--no-on-crash", default=None, help="One when its machine ended by itself.")
@click.option("--keep-last", metavar="N", type=int, help="Keep the last N.")
@click.option("--keep-hourly", metavar="N", type=int, help="Keep the last one of each of N hours that have any.")
@click.option("--keep-daily", metavar="N", type=int, help="The same of days.")
@click.option("--keep-weekly", metavar="N", type=int, help="The same of weeks.")
@click.option("--keep-monthly", metavar="N", type=int, help="The same of months.")
@click.option("--keep-tag", "keep_tags", metavar="T", multiple=True, help="Keep those with this tag; may be repeated.")
@click.option("--min-age", metavar="T", help="Let nothing go that is younger (default: 1h).")
@click.option("--budget", metavar="B", help="Bytes that its snapshots may hold, like 5G; or `none`.")
@click.option(
    "--asked-too/--not-asked-too", default=None, help="Also those that you asked for, unless they have a name."
)
@click.option("--off", is_flag=True, help="No snapshot is made or goes by rule any more; those that are there stay.")
@pass_session
def set_(
    session: Session,
    /,
    ref: str,
    every: str | None,
    budget: str | None,
    keep_tags: tuple[str, ...],
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
    given: dict[str, Any] = {name: value for name, value in rules.items() if value is not None}
    if every is not None:
        given["every"] = None if every == "off" else every
    if budget is not None:
        given["budget"] = None if budget == "none" else budget
    if keep_tags:
        given["keep_tags"] = keep_tags
    if bool(given) == off:
        raise click.UsageError("nothing to change" if not off else "--off goes alone")
    found = session.sandbox(ref)
    view = found.timeline.off() if off else found.timeline.set(**given)
    session.say(shown(view), view)
    if view.every is not None and not _counts(view) and view.budget is None:
        session.note("note: nothing says what goes; from 1,000 snapshots on no more are made")


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


def shown(view: "TimelineView") -> str:
    memory = " with memory" if view.kind == "full" else ""
    made = [f"every {_time(view.every)}{memory}"] if view.every is not None else []
    made += [f"on {name}" for name, on in _ends(view) if on]
    keep = [f"{_count(view, name)} {name}" for name in _PERIODS if _count(view, name)]
    keep += [f"tagged {tag}" for tag in view.keep_tags]
    lines = [
        ("made", ", ".join(made) or "none by rule"),
        ("next", clock(view.next_at) if view.next_at else "-"),
        ("keep", ", ".join(keep) if keep else "-" if view.budget is not None else "all"),
        ("budget", size(view.budget)),
        ("min age", _time(view.min_age) if view.min_age else "-"),
        ("rules", "also for those that you asked for" if view.asked_too else "not for those that you asked for"),
    ]
    return "\n".join(f"{name + ':':<9}{text}" for name, text in lines)


def _ends(view: "TimelineView") -> list[tuple[str, bool]]:
    return [("exit", view.on_exit), ("out of memory", view.on_out_of_memory), ("crash", view.on_crash)]


def _count(view: "TimelineView", period: str) -> int:
    return int(getattr(view, f"keep_{period}"))


def _counts(view: "TimelineView") -> bool:
    return any(_count(view, period) for period in _PERIODS)


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
