"""sandkeep pause, resume, stop and start"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from sandkeep.cli.options import SANDBOX
from sandkeep.cli.output import working
from sandkeep.cli.printable import printable
from sandkeep.cli.session import Session, pass_session

if TYPE_CHECKING:
    from sandkeep.sdk import Sandbox

several = click.argument("refs", metavar="NAME_OR_ID...", type=SANDBOX, nargs=-1, required=True)


def change(session: Session, refs: Sequence[str], doing: str, act: "Callable[[Sandbox], None]") -> None:
    """One after the other; the first failure ends it, but one that is not there does not keep the others. With --json: a
    view, or a list of them for several."""
    from sandkeep.sdk.errors import NotFound

    changed: list[Any] = []
    missing: NotFound | None = None
    for ref in refs:
        try:
            sandbox = session.sandbox(ref)
        except NotFound as error:
            missing = missing or error
            continue
        with working(session, f"{doing} {ref}"):
            act(sandbox)
        hold = f", held in {sandbox.hold}" if sandbox.hold else ""
        changed.append(sandbox.view)
        if not session.as_json:
            # A pause that fell back to a stop says so itself.
            instead = sandbox.view.reason if sandbox.view.reason.startswith("stopped instead") else sandbox.phase
            session.say(f"{sandbox.name or sandbox.id} is {printable(instead)}{hold}")
    if session.as_json and (changed or len(refs) > 1):
        session.say("", changed if len(refs) > 1 else changed[0])
    if missing is not None:
        raise missing


@click.command()
@several
@click.option("--hold", type=click.Choice(["disk", "memory"]), help="Where its memory waits (default: disk).")
@click.option("--or-disk", is_flag=True, default=None, help="What cannot be saved becomes a stop that keeps the disk.")
@pass_session
def pause(session: Session, refs: tuple[str, ...], hold: Any, or_disk: bool | None) -> None:
    """Freeze sandboxes: memory, processes and disk stay as they are.

    \b
    Examples:
      sandkeep pause dev
      sandkeep pause dev --hold memory
      sandkeep pause build --or-disk
    """
    change(session, refs, "pausing", lambda sandbox: sandbox.pause(hold=hold, or_disk=or_disk))


@click.command()
@several
@pass_session
def resume(session: Session, refs: tuple[str, ...]) -> None:
    """Go on with paused sandboxes, where they were.

    \b
    Example:
      sandkeep resume dev
    """
    change(session, refs, "resuming", lambda sandbox: sandbox.resume())


@click.command()
@several
@pass_session
def stop(session: Session, refs: tuple[str, ...]) -> None:
    """End the machines of sandboxes; their disks stay.

    \b
    Example:
      sandkeep stop dev build
    """
    change(session, refs, "stopping", lambda sandbox: sandbox.stop())


@click.command()
@several
@click.option(
    "--rescue", is_flag=True, help="A full disk gets some more room, to clean it; the next start takes it back."
)
@pass_session
def start(session: Session, refs: tuple[str, ...], rescue: bool) -> None:
    """Start stopped or failed sandboxes from their disks.

    \b
    Examples:
      sandkeep start dev
      sandkeep start dev --rescue
    """
    change(session, refs, "starting", lambda sandbox: sandbox.start(rescue=rescue))
