"""sandkeep promote"""

from typing import Any

import click

from sandkeep.cli.options import sandbox_argument
from sandkeep.cli.output import working
from sandkeep.cli.session import Session, pass_session


@click.command()
@sandbox_argument
@click.option("--into", metavar="NAME", required=True, help="The sandbox whose state it becomes.")
@click.option(
    "--kind", type=click.Choice(["disk", "full"]), help="The disk alone, or with memory (default: if it can)."
)
@click.option("--delete-others", is_flag=True, help="Delete the other forks of that sandbox.")
@pass_session
def promote(session: Session, ref: str, into: str, kind: Any, delete_others: bool) -> None:
    """Make the state of a fork its parent's, which keeps id, name, address, policies, machine-id and host keys. The moment before
    is kept as a snapshot of the parent. The fork itself stays.

    \b
    Examples:
      sandkeep promote try-3 --into dev
      sandkeep promote try-3 --into dev --delete-others
    """
    fork = session.sandbox(ref)
    with working(session, f"promoting {ref} into {into}"):
        parent = fork.promote(into, kind=kind, delete_others=delete_others)
    session.say(f"{into} is {parent.phase}, as {ref} was", parent.view)
    session.note(f"the moment before is kept: `sandkeep snapshot list {into}` shows it")
