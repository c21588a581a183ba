"""sandkeep rollback"""

from typing import Any

import click

from sandkeep.cli.output import working
from sandkeep.cli.points import POINT, Point
from sandkeep.cli.session import Session, pass_session


@click.command()
@click.argument("point", metavar="NAME@SNAPSHOT", type=POINT)
@click.option("--no-keep-before", is_flag=True, help="Do not keep the moment before: what is newer is gone.")
@click.option(
    "--kind", type=click.Choice(["disk", "full"]), help="The disk alone, or with memory (default: all it has)."
)
@pass_session
def rollback(session: Session, point: Point, kind: Any, no_keep_before: bool) -> None:
    """Go back to a snapshot. Id, name, address and policies stay; it runs again if it ran, and from a full snapshot processes
    go on as they were then. The moment before is kept as a snapshot of its own.

    \b
    Examples:
      sandkeep rollback dev@clean
      sandkeep rollback dev@clean --no-keep-before
      sandkeep rollback dev@working --kind disk
    """
    sandbox = session.sandbox(point.sandbox)
    with working(session, f"going back to {point}"):
        sandbox.rollback(point.snapshot, kind=kind, keep_before=not no_keep_before)
    session.say(f"{point.sandbox} is {sandbox.phase}, as it was at {point.snapshot}", sandbox.view)
    if not no_keep_before:
        session.note(f"the moment before is kept: `sandkeep snapshot list {point.sandbox}` shows it")
