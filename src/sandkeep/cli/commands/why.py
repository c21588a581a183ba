"""sandkeep why"""

import click

from sandkeep.cli.options import sandbox_argument
from sandkeep.cli.output import age, clock
from sandkeep.cli.printable import printable
from sandkeep.cli.session import Session, pass_session


@click.command()
@sandbox_argument
@pass_session
def why(session: Session, ref: str) -> None:
    """Say what a sandbox is doing, since when and why, what comes next by itself, and what you can do.

    \b
    Examples:
      sandkeep why dev
      sandkeep why dev --json | jq -r '.can[].command'
    """
    view = session.sandbox(ref).why()
    lines = [("now", f"{view.doing} ({view.phase} for {age(view.since)})")]
    lines += [("because", reason) for reason in view.because]
    lines += [("next", f"{step.what}, at {clock(step.at)}" if step.at else step.what) for step in view.next]
    width = max(len(remedy.command) for remedy in view.can) if view.can else 0
    lines += [("you can", f"{remedy.command:<{width}}  {remedy.what}") for remedy in view.can]
    session.say("\n".join(f"{name + ':':<9}{printable(text)}" for name, text in lines), view)
