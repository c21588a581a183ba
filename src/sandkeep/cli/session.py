"""What one command line carries along: the common options, the client made at first use, how failures exit."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from sandkeep.cli.printable import printable

if TYPE_CHECKING:
    from sandkeep.sdk import Client, Sandbox


_PATIENCE = 4.0
"""Seconds in which a server that restarts is waited for; one that is down is said to be so."""


class Session:
    """`as_json`, `instance`: the common options. `failure_code`: the exit code of Sandkeep's own failures, where the
    command passes on somebody else's codes (exec, shell, run: 125)."""

    def __init__(self) -> None:
        self.as_json = False
        self.instance: str | None = None
        self.failure_code: int | None = None
        self._client: Client | None = None

    def client(self) -> "Client":
        """Raises ConfigError when no server is known."""
        if self._client is None:
            from sandkeep.sdk import Client

            self._client = Client(instance=self.instance, retry_for=_PATIENCE)
        return self._client

    def sandbox(self, ref: str) -> "Sandbox":
        """Raises NotFound."""
        from sandkeep.sdk import Sandbox

        return Sandbox.get(ref, client=self.client())

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def say(self, text: str, value: Any = None) -> None:
        """The result: text for people, where there is any, or with --json the value."""
        if self.as_json:
            click.echo(dumped(value))
        elif text:
            click.echo(text)

    def note(self, text: str) -> None:
        """A remark beside the result; never on standard output."""
        if not self.as_json:
            click.echo("\n".join(printable(line) for line in text.split("\n")), err=True)

    @property
    def live(self) -> bool:
        """Somebody watches: progress may be drawn."""
        return not self.as_json and sys.stderr.isatty()


def session(ctx: click.Context | None = None) -> Session:
    """That of the command being run."""
    found = (ctx or click.get_current_context()).find_root()
    if not isinstance(found.obj, Session):
        found.obj = Session()
    return found.obj


pass_session = click.make_pass_decorator(Session, ensure=True)


def dumped(value: Any) -> str:
    """JSON of plain values and of wire shapes."""

    def plain(other: Any) -> Any:
        if hasattr(other, "model_dump"):
            return other.model_dump(mode="json")
        return str(other)

    return json.dumps(value, default=plain, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False)
