"""sandkeep key"""

import sys

import click

from sandkeep.cli.output import age, table
from sandkeep.cli.session import Session, pass_session


@click.group()
def key() -> None:
    """Create, list and revoke API keys.

    \b
    Example:
      sandkeep key create ci
    """


@key.command()
@click.argument("name")
@pass_session
def create(session: Session, name: str) -> None:
    """Make a key. It is shown this once; alone, when the output is not a terminal.

    \b
    Examples:
      sandkeep key create ci
      export SANDKEEP_KEY=$(sandkeep key create ci)
    """
    created = session.client().keys.create(name)
    session.say(created.secret, created)
    if sys.stdout.isatty():
        session.note(f"this is the only time that it is shown; revoke it with `sandkeep key revoke {created.id}`")


@key.command("list")
@pass_session
def list_(session: Session) -> None:
    """List keys, without their secrets.

    \b
    Example:
      sandkeep key list
    """
    found = list(session.client().keys.list())
    rows = [
        [view.name, view.id, view.prefix + "...", age(view.created_at), "revoked" if view.revoked_at else "valid"]
        for view in found
    ]
    session.say(table(("NAME", "ID", "KEY", "AGE", "STATE"), rows), found)


@key.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@pass_session
def revoke(session: Session, ids: tuple[str, ...]) -> None:
    """Revoke keys, at once.

    \b
    Example:
      sandkeep key revoke key_3f9a
    """
    for key_id in ids:
        session.client().keys.revoke(key_id)
    session.say("\n".join(f"{key_id} is revoked" for key_id in ids), {"revoked": list(ids)})
