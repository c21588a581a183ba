"""sandkeep run"""

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from sandkeep.cli.options import create_options, exec_options
from sandkeep.cli.output import working
from sandkeep.cli.remote import exit_code_of, run_remote
from sandkeep.cli.session import Session, pass_session

if TYPE_CHECKING:
    from sandkeep.sdk import Sandbox

# The server deletes the sandbox when it has heard nothing for GRACE seconds: three heartbeats may be lost.
GRACE = 30
BEAT = 10.0


@click.command()
@click.argument("command", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--name", metavar="N", help="A name for it while it lives.")
@create_options
@click.option("--ttl", metavar="T", help="It is deleted after this time, like 1h.")
@exec_options
@pass_session
def run(
    session: Session,
    /,
    command: tuple[str, ...],
    stdin: bool,
    tty: bool,
    user: str | None,
    cwd: str | None,
    timeout: str | None,
    **spec: Any,
) -> None:
    """Run one command in an ephemeral sandbox of its own, which is deleted at its end, at Ctrl-C, and half a minute
    after this program vanished.

    \b
    Examples:
      sandkeep run -- python3 -c 'print(1 + 1)'
      sandkeep run --network none --memory 512MiB --timeout 1m -- ./untrusted
      sandkeep run -it -- bash
    """
    from sandkeep.sdk import Sandbox

    for mapping in ("env", "labels"):
        spec[mapping] = spec[mapping] or None
    if spec["ttl"] is not None:
        spec["on_expiry"] = "delete"

    def act() -> int:
        with working(session, "making a sandbox"):
            sandbox = Sandbox.create(**spec, persistence="ephemeral", grace=GRACE, client=session.client())
        with deleted_at_end(sandbox), heartbeats(sandbox):
            # Variables of `--env` are the sandbox's own; the command has them too.
            return run_remote(
                session, sandbox, command, stdin=stdin, tty=tty, user=user, cwd=cwd, env={}, timeout=timeout
            )

    click.get_current_context().exit(exit_code_of(session, act))


@contextlib.contextmanager
def deleted_at_end(sandbox: "Sandbox") -> Iterator[None]:
    from sandkeep.sdk.errors import NotFound, SandkeepError

    try:
        yield
    finally:
        try:
            sandbox.delete()
        except NotFound:
            pass
        except SandkeepError as error:
            click.echo(f"warning: {sandbox.id} is left to the server, which deletes it in {GRACE} s: {error}", err=True)


@contextlib.contextmanager
def heartbeats(sandbox: "Sandbox") -> Iterator[None]:
    from sandkeep.sdk import SandkeepError

    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT):
            # A server that restarts hears the next one.
            with contextlib.suppress(SandkeepError):
                sandbox.heartbeat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
