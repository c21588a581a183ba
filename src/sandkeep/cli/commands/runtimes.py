"""sandkeep runtimes"""

import click

from sandkeep.cli.output import table
from sandkeep.cli.session import Session, pass_session


@click.command()
@pass_session
def runtimes(session: Session) -> None:
    """Show the runtimes of the server, what each can do, and whom it may be trusted with.

    \b
    Example:
      sandkeep runtimes
    """
    found = session.client().runtimes()
    rows = [
        [
            view.name,
            "yes" if view.available else f"no: {view.reason}",
            view.version or "-",
            view.isolation,
            view.trust,
            ", ".join(view.persistence),
            ", ".join(view.holds) or "-",
        ]
        for view in found
    ]
    heads = ("NAME", "AVAILABLE", "VERSION", "ISOLATION", "FOR", "PERSISTENCE", "HOLD")
    lines = [table(heads, rows)]
    for view in found:
        lines += [f"{view.name}: no {what}: {why}" for what, why in view.unsupported.items()]
        lines += [f"{view.name}: {note}" for note in view.notes]
    session.say("\n".join(lines), list(found))
