"""sandkeep stats"""

import click

from sandkeep.cli.options import sandbox_argument
from sandkeep.cli.output import size
from sandkeep.cli.session import Session, pass_session


@click.command()
@sandbox_argument
@pass_session
def stats(session: Session, ref: str) -> None:
    """Show what a sandbox uses now.

    \b
    Example:
      sandkeep stats dev --json
    """
    view = session.sandbox(ref).stats()
    cpu = "-" if view.cpu_seconds is None else f"{view.cpu_seconds:.1f} s"
    lines = [
        ("cpu", f"{cpu} since its start"),
        ("memory", f"{size(view.memory)} of {size(view.memory_limit)}"),
        ("disk", f"{size(view.disk)} of {size(view.disk_limit)}"),
        ("processes", "-" if view.processes is None else str(view.processes)),
    ]
    session.say("\n".join(f"{name + ':':<11}{text}" for name, text in lines), view)
