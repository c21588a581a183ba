"""The click group: commands are imported when they are called, and all take --json and --instance."""

from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from sandkeep.cli.session import session
from sandkeep.cli.table import COMMANDS, HIDDEN, every_command, help_text


class LazyGroup(click.Group):
    """The root of the command line, from the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(every_command())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = every_command().get(cmd_name)
        if row is None:
            return None
        return load(cmd_name, *row)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """From the table: click's own would import every command."""
        rows = {name: text for section in COMMANDS.values() for name, (_, text) in section.items()}
        found = [CompletionItem(name, help=text) for name, text in rows.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def get_help(self, ctx: click.Context) -> str:
        return help_text().rstrip()


def load(name: str, where: str, text: str) -> click.Command:
    """Import one command and give it the options that all have. `where`: module:attribute."""
    module, _, attribute = where.partition(":")
    command: click.Command = getattr(import_module(f"sandkeep.cli.commands.{module}"), attribute)
    command.name = name
    command.short_help = command.short_help or text
    command.hidden = command.hidden or name in HIDDEN
    with_common_options(command)
    return command


def with_common_options(command: click.Command) -> None:
    known = {option for parameter in command.params for option in parameter.opts}
    for option in (instance_option(), json_option()):
        if not known & set(option.opts):
            command.params.append(option)
    if isinstance(command, click.Group):
        for child in command.commands.values():
            with_common_options(child)


def json_option() -> click.Option:
    def keep(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            session(ctx).as_json = True

    return click.Option(["--json"], is_flag=True, expose_value=False, is_eager=True, callback=keep, help="Print JSON.")


def instance_option() -> click.Option:
    def keep(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        if value:
            session(ctx).instance = value

    return click.Option(
        ["--instance"],
        metavar="NAME",
        expose_value=False,
        is_eager=True,
        callback=keep,
        help="Which entry of the configuration file to use; else SANDKEEP_INSTANCE.",
    )


def root() -> click.Group:
    """A fresh root, with the common options."""
    from sandkeep import __version__

    settings: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
    group = LazyGroup("sandkeep", context_settings=settings, params=[instance_option(), json_option()])
    return click.version_option(__version__, message="sandkeep %(version)s")(group)
