"""sandkeep restore"""

import click

from sandkeep.cli.output import counted, size, working
from sandkeep.cli.points import Place, PlaceName
from sandkeep.cli.printable import printable
from sandkeep.cli.session import Session, pass_session


@click.command()
@click.argument("place", metavar="NAME@SNAPSHOT:/PATH", type=PlaceName())
@click.option("--to", metavar="PATH", help="Another place; with a slash at the end, a folder to put it in.")
@click.option("--snapshot-first", is_flag=True, help="Keep the moment before as a snapshot.")
@click.option("--no-resume", is_flag=True, help="Fail when it does not run, instead of waking it.")
@pass_session
def restore(session: Session, place: Place, to: str | None, snapshot_first: bool, no_resume: bool) -> None:
    """Put a file or a folder of a snapshot back into its sandbox, with owners, modes and times. A file replaces what has its
    name; a folder is filled up, and keeps what else it has.

    \b
    Examples:
      sandkeep restore dev@clean:/etc/hosts
      sandkeep restore dev@clean:/home/user/src --snapshot-first
      sandkeep restore dev@clean:/home/user/src --to /tmp/src-then
    """
    sandbox = session.sandbox(place.sandbox)
    with working(session, f"restoring {place}"):
        done = sandbox.restore(place.snapshot, place.path, to=to, snapshot_first=snapshot_first, no_resume=no_resume)
    where = f"{place.sandbox}:{printable(done.path)}"
    what = f"{counted(done.files, 'file')}, {counted(done.folders, 'folder')}, {size(done.bytes)}"
    if done.type == "directory":
        how = (
            f"filled up from {place.snapshot} ({what})" if done.there_before else f"back from {place.snapshot} ({what})"
        )
    else:
        how = f"{'replaced by' if done.there_before else 'back from'} {place.snapshot}"
    session.say(f"{where} is {how}", done)
    if done.skipped:
        session.note(f"skipped: {counted(done.skipped, 'device, FIFO or socket')}")
    if done.snapshot:
        session.note(f"the moment before is kept: {place.sandbox}@{done.snapshot}")
