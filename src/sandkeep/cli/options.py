"""Arguments and options that several commands share."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from sandkeep.sdk import Client

Command = TypeVar("Command", bound=Callable[..., Any])


class KnownName(click.types.StringParamType):
    """Completed from the server, which has a second to answer."""

    def known(self, client: "Client", incomplete: str) -> list[str]:
        """What there is; it need not all begin with what is written so far."""
        raise NotImplementedError

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            from sandkeep.sdk import Client

            with Client(timeout=1.0, retry_for=0.0) as client:
                found = self.known(client, incomplete)
        except Exception:
            # Whatever is wrong, a completion says nothing.
            return []
        return [CompletionItem(name) for name in found if name.startswith(incomplete)]


class SandboxName(KnownName):
    """A name or an id."""

    name = "name or id"

    def known(self, client: "Client", incomplete: str) -> list[str]:
        from sandkeep.sdk import Sandbox

        return [sandbox.name or sandbox.id for sandbox in Sandbox.list(client=client)]


class TemplateName(KnownName):
    """Of those that are ready."""

    name = "template"

    def known(self, client: "Client", incomplete: str) -> list[str]:
        return [template.name for template in client.templates.list() if template.phase == "ready"]


PHASES = (
    "new",
    "starting",
    "running",
    "pausing",
    "paused",
    "resuming",
    "stopping",
    "stopped",
    "archiving",
    "archived",
    "waking",
    "deleting",
    "failed",
)
SANDBOX = SandboxName()
sandbox_argument = click.argument("ref", metavar="NAME_OR_ID", type=SANDBOX)


def pairs(
    what: str, *, from_environment: bool = False
) -> Callable[[click.Context, click.Parameter, Any], dict[str, str]]:
    """K=V, repeated. With `from_environment` a bare K takes its value from our own environment."""

    def parse(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for item in value:
            name, equals, text = item.partition("=")
            if not equals and from_environment and name in os.environ:
                text = os.environ[name]
            elif not equals or not name:
                raise click.BadParameter(f"{item!r} is not {what}", ctx, param)
            try:
                item.encode(), text.encode()
            except UnicodeEncodeError:  # bytes of ours that no JSON can carry
                raise click.BadParameter(f"{name!r} is not UTF-8: let it be read from a file", ctx, param) from None
            found[name] = text
        return found

    return parse


label_option = click.option(
    "--label", "labels", metavar="K=V", multiple=True, callback=pairs("K=V"), help="A label; may be repeated."
)
env_option = click.option(
    "--env",
    metavar="K=V",
    multiple=True,
    callback=pairs("K=V, nor a variable of this environment", from_environment=True),
    help="A variable; may be repeated. K alone takes its value from here.",
)

_CREATE = (
    click.option("--template", metavar="T", type=TemplateName(), help="What it starts from (default: base)."),
    click.option(
        "--runtime", type=click.Choice(["gvisor", "runc"]), help="gvisor (default), or runc: trusted code only."
    ),
    click.option("--cpus", metavar="C", type=float, help="Processors, like 0.5 or 2."),
    click.option("--memory", metavar="M", help="Like 512MiB or 2G."),
    click.option("--disk", metavar="D", help="Like 8GiB."),
    click.option("--pids", metavar="N", type=int, help="Processes at most."),
    env_option,
    label_option,
    click.option("--network", type=click.Choice(["none", "internet"]), help="What it may reach."),
)


def create_options(function: Command) -> Command:
    """The flags that `create` and `run` share."""
    for option in reversed(_CREATE):
        function = option(function)
    return function


_EXEC = (
    click.option("-i", "--stdin", "stdin", is_flag=True, help="Pass standard input on."),
    click.option("-t", "--tty", "tty", is_flag=True, help="A terminal (implies -i)."),
    click.option("--user", metavar="U", help="Who runs it (default: the template's user)."),
    click.option("--cwd", metavar="D", help="Its working folder."),
    click.option("--timeout", metavar="T", help="Kill it after this time, like 30s or 5m."),
)


def exec_options(function: Command) -> Command:
    """The flags that `exec` and `run` share."""
    for option in reversed(_EXEC):
        function = option(function)
    return function


_TIMELINE = (
    click.option(
        "--every", metavar="T", help="A snapshot so long after the last one, like 1h, if anything changed; or `off`."
    ),
    click.option(
        "--kind",
        type=click.Choice(["disk", "full"]),
        help="What is kept on schedule of what runs: full is with memory.",
    ),
    click.option("--on-exit/--no-on-exit", default=None, help="One when somebody stops its machine."),
    click.option("--on-oom/--no-on-oom", "on_out_of_memory", default=None, help="One when memory ran out."),
    click.option("--on-crash/--no-on-crash", default=None, help="One when its machine ended by itself."),
    click.option("--keep-last", metavar="N", type=int, help="Keep the last N."),
    click.option("--keep-hourly", metavar="N", type=int, help="Keep the last one of each of N hours that have any."),
    click.option("--keep-daily", metavar="N", type=int, help="The same of days."),
    click.option("--keep-weekly", metavar="N", type=int, help="The same of weeks."),
    click.option("--keep-monthly", metavar="N", type=int, help="The same of months."),
    click.option(
        "--keep-tag", "keep_tags", metavar="T", multiple=True, help="Keep those with this tag; may be repeated."
    ),
    click.option("--min-age", metavar="T", help="Let nothing go that is younger (default: 1h)."),
    click.option("--budget", metavar="B", help="Bytes that its snapshots may hold, like 5G; or `none`."),
    click.option(
        "--asked-too/--not-asked-too", default=None, help="Also those that you asked for, unless they have a name."
    ),
)
TIMELINE_NAMES = (
    "every",
    "kind",
    "on_exit",
    "on_out_of_memory",
    "on_crash",
    "keep_last",
    "keep_hourly",
    "keep_daily",
    "keep_weekly",
    "keep_monthly",
    "keep_tags",
    "min_age",
    "budget",
    "asked_too",
)


def timeline_options(function: Command) -> Command:
    """The flags that `timeline set` and `create` share."""
    for option in reversed(_TIMELINE):
        function = option(function)
    return function


def timeline_given(options: dict[str, Any]) -> dict[str, Any]:
    """Takes out of a command's options what was given of these."""
    found = {name: options.pop(name) for name in TIMELINE_NAMES}
    given = {name: value for name, value in found.items() if value is not None and value != ()}
    if given.get("every") == "off":
        given["every"] = None
    if given.get("budget") == "none":
        given["budget"] = None
    return given
