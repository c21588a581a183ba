"""sandkeep logs"""

import click

from sandkeep.cli.options import sandbox_argument
from sandkeep.cli.session import Session, pass_session


@click.command()
@sandbox_argument
@click.option("--limit", metavar="BYTES", type=int, help="How much of the end (default: 65536).")
@pass_session
def logs(session: Session, ref: str, limit: int | None) -> None:
    """Print the end of what a sandbox's runtime and agent printed.

    \b
    Example:
      sandkeep logs dev --limit 4000
    """
    text = session.sandbox(ref).logs(limit=limit)
    if session.as_json:
        session.say("", {"text": text})
    elif text:
        click.echo(text, nl=not text.endswith("\n"))
