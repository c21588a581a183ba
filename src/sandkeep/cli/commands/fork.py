"""sandkeep fork"""

import sys
from typing import TYPE_CHECKING, Any

import click

from sandkeep.cli.output import counted, working
from sandkeep.cli.points import Point, PointName
from sandkeep.cli.session import Session, pass_session

if TYPE_CHECKING:
    from sandkeep.sdk import Sandbox


@click.command()
@click.argument("point", metavar="NAME[@SNAPSHOT]", type=PointName(or_now=True))
@click.option(
    "--count", metavar="N", type=click.IntRange(1, 100), default=1, help="How many (default: 1; at most 100)."
)
@click.option(
    "--kind", type=click.Choice(["disk", "full"]), help="The disk alone, or with memory (default: if it can)."
)
@click.option("--name", metavar="N", help="Of the fork; several are called N-1, N-2, ...")
@pass_session
def fork(session: Session, point: Point, count: int, kind: str | None, name: str | None) -> None:
    """Make new sandboxes, running, as one is now or was at a snapshot. Without a snapshot one is made first, and stays.
    Processes go on in each of them where the runtime can save memory (gVisor); what they hold in memory is copied, secrets
    too. Prints the ids alone when the output is not a terminal.

    \b
    Examples:
      sandkeep fork dev --name dev2
      sandkeep fork dev@clean --count 10 --name try
      sandkeep fork dev --kind disk
      for id in $(sandkeep fork dev@clean --count 3); do sandkeep exec "$id" -- make test; done
    """
    from sandkeep.sdk.requests import fresh_key

    source = session.sandbox(point.sandbox)
    asked: dict[str, Any] = {"snapshot": point.snapshot or None, "kind": kind, "name": name}
    asked["idempotency_key"] = fresh_key()
    try:
        with working(session, f"making {counted(count, 'fork')} of {point}"):
            forks = source.fork(count, **asked)
    except KeyboardInterrupt:
        _cancel(session, source, count, asked)
        raise
    if session.as_json or not sys.stdout.isatty():
        session.say("\n".join(made.id for made in forks), [made.view for made in forks])
        return
    for made in forks:
        session.say(f"{made.name or made.id} is {made.phase} ({made.id}, {made.runtime})")
    if source.trust != "untrusted code":
        session.note(f"note: {source.runtime} shares the kernel of its host: {source.trust}")


def _cancel(session: Session, source: "Sandbox", count: int, asked: dict[str, Any]) -> None:
    """The server may have made them: the same request again says which. As in `create`, what has a name is not deleted."""
    session.note("cancelling")
    forks = source.fork(count, **asked)
    named = [made.name for made in forks if made.name]
    if named:
        session.note(f"there now: {', '.join(named)}; `sandkeep delete {' '.join(named)}` removes them")
    for made in forks:
        if not made.name:
            made.delete()
