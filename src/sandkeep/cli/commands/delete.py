"""sandkeep delete"""

import click

from sandkeep.cli.commands.lifecycle import several
from sandkeep.cli.output import working
from sandkeep.cli.session import Session, pass_session


@click.command()
@several
@pass_session
def delete(session: Session, refs: tuple[str, ...]) -> None:
    """Delete sandboxes with their disks and snapshots, for good, from any phase. One that is not there does not keep the others.

    \b
    Examples:
      sandkeep delete dev
      sandkeep list --label temporary=yes -q | xargs sandkeep delete
    """
    from sandkeep.sdk.errors import NotFound

    deleted: list[str] = []
    missing: NotFound | None = None
    for ref in refs:
        try:
            sandbox = session.sandbox(ref)
            with working(session, f"deleting {ref}"):
                sandbox.delete()
        except NotFound as error:
            missing = missing or error
            continue
        deleted.append(sandbox.id)
        if not session.as_json:
            session.say(f"{ref} is deleted")
    if session.as_json:
        session.say("", {"deleted": deleted})
    if missing is not None:
        raise missing
