"""sandkeep wait"""

from collections.abc import Sequence
from typing import Any

import click

from sandkeep.cli.options import PHASES, sandbox_argument
from sandkeep.cli.output import working
from sandkeep.cli.session import Session, pass_session


@click.command()
@sandbox_argument
@click.option(
    "--phase",
    "phases",
    metavar="P",
    type=click.Choice((*PHASES, "deleted")),
    multiple=True,
    help="Which (default: running); may be repeated.",
)
@click.option("--timeout", metavar="T", default="60", help="Give up after this time (default: 60s); exit code 8.")
@pass_session
def wait(session: Session, ref: str, phases: Sequence[Any], timeout: str) -> None:
    """Wait until a sandbox is in a phase.

    \b
    Examples:
      sandkeep wait dev
      sandkeep wait dev --phase stopped --phase failed --timeout 5m
    """
    sandbox = session.sandbox(ref)
    with working(session, f"waiting for {ref}"):
        sandbox.wait(*phases, timeout=timeout)
    session.say(f"{sandbox.name or sandbox.id} is {sandbox.phase}", sandbox.view)
