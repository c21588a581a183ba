"""sandkeep events"""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from sandkeep.cli.options import SANDBOX
from sandkeep.cli.output import clock
from sandkeep.cli.printable import printable
from sandkeep.cli.session import Session, pass_session

if TYPE_CHECKING:
    from sandkeep.wire.events import EventView


@click.command()
@click.argument("ref", metavar="[NAME_OR_ID]", type=SANDBOX, required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on; Ctrl-C ends it.")
@click.option("--after", metavar="N", type=int, help="Only those after this seq.")
@pass_session
def events(session: Session, ref: str | None, follow: bool, after: int | None) -> None:
    """Show what happened, to one sandbox or to all, oldest first. With --json: one object a line.

    \b
    Examples:
      sandkeep events dev
      sandkeep events --follow --after 1200 --json
    """
    found: Iterable[EventView] = (
        session.sandbox(ref).events(after=after, follow=follow)
        if ref
        else session.client().events(after=after, follow=follow)
    )
    for event in found:
        if session.as_json:
            click.echo(event.model_dump_json())
            continue
        data = f"  {json.dumps(event.data, ensure_ascii=False)}" if event.data else ""
        line = f"{event.seq:>6}  {clock(event.at)}  {event.kind:<20}  {event.subject}  {event.reason}{data}"
        click.echo(printable(line).rstrip())
