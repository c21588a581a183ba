"""sandkeep commit"""

import click

from sandkeep.cli.options import sandbox_argument
from sandkeep.cli.output import working
from sandkeep.cli.session import Session, pass_session


@click.command()
@sandbox_argument
@click.option("--name", metavar="S", help="Of the snapshot that this moment becomes.")
@pass_session
def commit(session: Session, ref: str, name: str | None) -> None:
    """Let the next sessions of a sandbox start from its disk as it is now (persistence=snapshot, commit not never). The moment
    becomes a snapshot, too.

    \b
    Examples:
      sandkeep commit clean-room
      sandkeep commit clean-room --name with-tools
    """
    with working(session, f"committing {ref}"):
        view = session.sandbox(ref).commit(name)
    session.say(f"{ref} starts from {view.name or view.id} from now on", view)
