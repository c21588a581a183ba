"""sandkeep archive and wake"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from sandkeep.cli.commands.lifecycle import change
from sandkeep.cli.output import brief, size, working
from sandkeep.cli.points import Point, PointName
from sandkeep.cli.printable import printable
from sandkeep.cli.session import Session, pass_session

if TYPE_CHECKING:
    from sandkeep.sdk import Sandbox

points = click.argument(
    "refs", metavar="NAME_OR_ID[@SNAPSHOT]...", type=PointName(or_now=True), nargs=-1, required=True
)


@click.command()
@points
@click.option(
    "--verify", is_flag=True, help="Restore what is archived into a scratch place, and compare it. Changes nothing."
)
@pass_session
@click.pass_context
def archive(ctx: click.Context, session: Session, refs: tuple[Point, ...], verify: bool) -> None:
    """Move stopped or paused sandboxes, or snapshots of any, to the object store. Their local copy goes only after the archive
    was read back. With --verify: exits with 1 when one is damaged.

    \b
    Examples:
      sandkeep archive dev
      sandkeep stop build && sandkeep archive build
      sandkeep archive dev@last-year
      sandkeep archive --verify dev
    """
    if verify:
        ctx.exit(0 if _verified(session, refs) else 1)
    with _goes_on(session, "archiving"):
        _each(session, refs, "archiving", lambda sandbox: sandbox.archive(), "archive")


@click.command()
@points
@click.option("--disk-only", is_flag=True, help="Leave the memory of sandboxes aside: they are then stopped.")
@pass_session
def wake(session: Session, refs: tuple[Point, ...], disk_only: bool) -> None:
    """Bring archived sandboxes and snapshots back as they were. exec, shell, cp, start and resume do this by themselves with a
    sandbox.

    \b
    Examples:
      sandkeep wake dev
      sandkeep wake dev --disk-only
      sandkeep wake dev@last-year && sandkeep rollback dev@last-year
    """
    with _goes_on(session, "waking"):
        _each(session, refs, "waking", lambda sandbox: sandbox.wake(disk_only=disk_only), "wake")


@contextmanager
def _goes_on(session: Session, doing: str) -> Iterator[None]:
    """Half of it is of no use to anybody, and nothing is lost by it: an interrupted call leaves it to the node."""
    try:
        yield
    except KeyboardInterrupt:
        session.note(f"the node goes on {doing}: sandkeep why NAME tells how far it is")
        raise


def _verified(session: Session, refs: Sequence[Point]) -> bool:
    """Whether all of them are whole."""
    views = []
    for point in refs:
        with working(session, f"verifying {point}"):
            view = session.sandbox(point.sandbox).verify_archive(point.snapshot or None)
        views.append(view)
        if not session.as_json:
            state = "intact" if view.intact else "damaged"
            session.say(f"{point} is {state}: {printable(view.reason)} ({brief(view.seconds)})")
    if session.as_json:
        session.say("", views if len(views) > 1 else views[0])
    return all(view.intact for view in views)


def _each(session: Session, refs: Sequence[Point], doing: str, act: "Callable[[Sandbox], None]", verb: str) -> None:
    """Snapshots first. With --json: a view, or a list of them for several of one kind."""
    moments = [point for point in refs if point.snapshot]
    sandboxes = [point for point in refs if not point.snapshot]
    if session.as_json and moments and sandboxes:
        raise click.UsageError("with --json: either sandboxes or snapshots")
    views: list[Any] = []
    for point in moments:
        with working(session, f"{doing} {point}"):
            view = getattr(session.sandbox(point.sandbox).snapshots, verb)(point.snapshot)
        views.append(view)
        if not session.as_json:
            kept = f"archived: {size(view.archived)} in the store" if view.archived is not None else "here"
            session.say(f"{point} is {kept}")
    if session.as_json and views:
        session.say("", views if len(views) > 1 else views[0])
    if sandboxes:
        change(session, sandboxes, doing, act)
