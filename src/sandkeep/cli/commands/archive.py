"""sandkeep archive and wake"""

import click

from sandkeep.cli.commands.lifecycle import change, several
from sandkeep.cli.session import Session, pass_session


@click.command()
@several
@pass_session
def archive(session: Session, refs: tuple[str, ...]) -> None:
    """Move stopped or paused sandboxes to the object store. Their local copy goes only after the archive was read back.

    \b
    Examples:
      sandkeep archive dev
      sandkeep stop build && sandkeep archive build
    """
    change(session, refs, "archiving", lambda sandbox: sandbox.archive())


@click.command()
@several
@click.option("--disk-only", is_flag=True, help="Leave their memory aside: they are then stopped.")
@pass_session
def wake(session: Session, refs: tuple[str, ...], disk_only: bool) -> None:
    """Bring archived sandboxes back as they were, paused or stopped. exec, shell, cp, start and resume do this by themselves.

    \b
    Examples:
      sandkeep wake dev
      sandkeep wake dev --disk-only
    """
    change(session, refs, "waking", lambda sandbox: sandbox.wake(disk_only=disk_only))
