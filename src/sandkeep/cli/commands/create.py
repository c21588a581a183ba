"""sandkeep create"""

import sys
from typing import Any

import click

from sandkeep.cli.options import create_options, timeline_given, timeline_options
from sandkeep.cli.output import working
from sandkeep.cli.points import POINT
from sandkeep.cli.session import Session, pass_session


@click.command()
@click.option("--name", metavar="N", help="With a name it is get-or-create.")
@create_options
@click.option(
    "--persistence",
    type=click.Choice(["ephemeral", "volume", "snapshot", "full"]),
    help="What survives a stop (default: volume, the disk).",
)
@click.option("--ttl", metavar="T", help="Lifetime, like 1h or 7d.")
@click.option("--on-expiry", type=click.Choice(["default", "delete"]), help="What the end of its lifetime does.")
@click.option("--pause-or-disk", is_flag=True, default=None, help="A pause that cannot save memory keeps the disk.")
@click.option(
    "--on-failure",
    type=click.Choice(["restart", "stop", "leave"]),
    help="What follows when its machine ends by itself (default: restart).",
)
@click.option("--from", "source", metavar="NAME@SNAPSHOT", type=POINT, help="Begin with a snapshot's disk.")
@click.option(
    "--commit",
    type=click.Choice(["never", "on-stop", "manual"]),
    help="Of --persistence snapshot: what becomes of a session at its stop (default: never, it is gone).",
)
@timeline_options
@pass_session
def create(session: Session, /, **spec: Any) -> None:
    """Make a sandbox, running. Prints its id alone when the output is not a terminal.

    \b
    Examples:
      sandkeep create --name dev
      sandkeep create --name build --cpus 4 --memory 4GiB --env CI=1 --label team=web
      sandkeep create --name kept --every 1h --keep-hourly 24 --keep-daily 7
      sandkeep create --name clean-room --persistence snapshot --from dev@clean
      id=$(sandkeep create --persistence ephemeral --network none --ttl 1h --on-expiry delete)
    """
    from sandkeep.sdk import Sandbox
    from sandkeep.sdk.requests import fresh_key

    for mapping in ("env", "labels"):
        spec[mapping] = spec[mapping] or None
    spec["timeline"] = timeline_given(spec) or None
    spec["idempotency_key"] = fresh_key()
    try:
        with working(session, "making a sandbox"):
            sandbox = Sandbox.create(**spec, client=session.client())
    except KeyboardInterrupt:
        _cancel(session, spec)
        raise
    if session.as_json or not sys.stdout.isatty():
        session.say(sandbox.id, sandbox.view)
        return
    session.say(f"{sandbox.name or sandbox.id} is {sandbox.phase} ({sandbox.id}, {sandbox.runtime})")
    if sandbox.trust != "untrusted code":
        session.note(f"note: {sandbox.runtime} shares the kernel of its host: {sandbox.trust}")


def _cancel(session: Session, spec: dict[str, Any]) -> None:
    """The server may have made it: the same request again says so. One with a name may have been there before."""
    from sandkeep.sdk import Sandbox

    session.note("cancelling")
    sandbox = Sandbox.create(**spec, client=session.client())
    if sandbox.name:
        session.note(f"{sandbox.name} is there; sandkeep delete {sandbox.name} removes it")
    else:
        sandbox.delete()
