"""Makes docs/reference from the code: `make reference`. tests/architecture/test_docs.py checks that nothing differs.

Only docs/reference/http.md is written by hand.
"""

import inspect
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click

from sandkeep import __version__
from sandkeep.app.settings import DEFAULT, Settings, derive
from sandkeep.cli.group import root
from sandkeep.cli.run import EXIT_CODES
from sandkeep.cli.table import COMMANDS
from sandkeep.domain import errors
from sandkeep.domain.event import MEANING
from sandkeep.domain.quantities import format_size
from sandkeep.edge.api.document import api_document
from sandkeep.edge.gate.problems import STATUSES
from sandkeep.telemetry.log import EVENTS
from sandkeep.telemetry.metrics import described

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
_MADE = "<!-- made by `make reference`; change the code, not this page -->\n"
_WIDTH = 100
_SIZES = {"pool_size", "memory_reserve", "pool_reserve"}

OTHER_VARIABLES = {
    "SANDKEEP_INSTANCE": "Which instance a command means, when --instance is not given. Default: `default`.",
    "SANDKEEP_URL": "Address of the server, for CLI and SDK.",
    "SANDKEEP_KEY": "API key, for CLI and SDK.",
    "SANDKEEP_FILE_KEY": "The key of the file that `sandkeep import` reads, when there is no --key-file.",
    "SANDKEEP_CONFIG_FOLDER": "Where the settings files are. Default: /etc/sandkeep.",
    "SANDKEEP_AGENT": "Path of another agent binary than the one in the package: for development.",
    "SANDKEEP_VERBOSE": "Not empty: setup prints what the package manager prints.",
    "XDG_CONFIG_HOME": "The CLI's own file is `sandkeep/config.json` in it. Default: ~/.config.",
}


def cli() -> str:
    group = root()
    context = click.Context(group, info_name="sandkeep", max_content_width=_WIDTH, terminal_width=_WIDTH)
    parts = ["# Command line\n", _MADE, "```text", group.get_help(context), "```\n", "## Exit codes\n"]
    rows: dict[int, list[str]] = {}
    for code, number in EXIT_CODES.items():
        rows.setdefault(number, []).append(f"`{code}`")
    parts.append(_table(("code", "errors"), [(str(n), ", ".join(rows[n])) for n in sorted(rows)]))
    for section, commands in COMMANDS.items():
        parts.append(f"\n## {section}\n")
        for name in commands:
            command = group.get_command(context, name)
            assert command is not None
            parts += _help(command, context, f"sandkeep {name}", "###")
    return "\n".join(parts)


def _help(command: click.Command, parent: click.Context, path: str, heading: str) -> list[str]:
    context = click.Context(
        command, parent, info_name=path.rpartition(" ")[2], max_content_width=_WIDTH, terminal_width=_WIDTH
    )
    parts = [f"{heading} {path}\n", "```text", command.get_help(context), "```\n"]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            parts += _help(child, context, f"{path} {name}", heading + "#")
    return parts


def settings() -> str:
    derived = derive(DEFAULT)
    rows = []
    for name, field in Settings.model_fields.items():
        value = derived.get(name, field.get_default())
        if value is None or str(value) == "":
            default = "-"
        else:
            default = f"`{format_size(value) if name in _SIZES else str(value).lower() if value is False else value}`"
        rows.append((f"`{name}`", default, str(field.description)))
    return "\n".join(
        [
            "# Settings\n",
            _MADE,
            "One TOML file per instance, `/etc/sandkeep/<instance>.toml`. Setup writes it; you may edit it, and then",
            "`sandkeep down` and `sandkeep up`. A variable `SANDKEEP_<NAME>` (`SANDKEEP_PORT`) wins over the file, and a",
            "flag of `sandkeep setup` over both. What setup was given stays in the file. Daemons that systemd starts read",
            "the file only, and every daemon takes `database_url` and `http_proxy` from it alone: a variable would show a",
            "password in them. Sizes are bytes or text like `512MiB`; durations are seconds or text like `30s`.\n",
            "Defaults are those of the instance `default`; ports, prefix and addresses of others follow from their names.\n",
            _table(("setting", "default", "what it is"), rows),
            "\n## Other environment variables\n",
            _table(("variable", "what it is"), [(f"`{name}`", text) for name, text in OTHER_VARIABLES.items()]),
        ]
    )


def error_codes() -> str:
    tree = inspect.getdoc(errors) or ""
    meanings = {}
    for line in tree.splitlines():
        name, _, text = line.lstrip("│├└─ ").partition(" ")
        meanings[name] = text.strip()
    rows = []
    for code, kind in errors.every_error().items():
        status, title = STATUSES[code]
        rows.append((f"`{code}`", str(status), title, meanings[kind.__name__]))
    return "\n".join(
        [
            "# Errors\n",
            _MADE,
            "Every error has a stable `code`, a sentence and mostly a `hint`. Over HTTP it is `application/problem+json`",
            "(RFC 9457) with `type` (`urn:sandkeep:error:<code>`), `title`, `status`, `detail`, `code`, `hint`, and what",
            "else is known at the top level. In the SDK each code is a class of the same name; the CLI turns it into an",
            "[exit code](cli.md#exit-codes).\n",
            "```text\n" + tree.split("\n\n")[1] + "\n```\n",
            _table(("code", "status", "title", "when"), rows),
        ]
    )


def events() -> str:
    return "\n".join(
        [
            "# Events\n",
            _MADE,
            "Facts in the past tense, in the order of `seq`. Each has `seq`, `at`, `kind`, `subject` (the id it is about),",
            "`reason` and `data`. `sandkeep events --follow` or `GET /v1/events?follow=true` streams them;",
            "[how to](../howto/events-and-metrics.md).\n",
            _table(("kind", "what it tells"), [(f"`{kind}`", text) for kind, text in MEANING.items()]),
        ]
    )


def metrics() -> str:
    rows = [
        (f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels) or "-", text + ".")
        for name, kind, labels, text in described()
    ]
    return "\n".join(
        [
            "# Metrics\n",
            _MADE,
            "`GET /metrics` with an API key, in the text format of Prometheus. Labels are bounded: no ids.\n",
            _table(("metric", "type", "labels", "what it is"), rows),
        ]
    )


def logs() -> str:
    return "\n".join(
        [
            "# Log events\n",
            _MADE,
            "The daemons write JSON lines: `event`, `level`, `timestamp`, and fields. Without systemd they are in",
            "`log_folder`, `server.log` and `runner.log`; with it, in the journal.\n",
            _table(("event", "what it tells"), [(f"`{name}`", text) for name, text in EVENTS.items()]),
        ]
    )


def openapi() -> str:
    return json.dumps(api_document(__version__), indent=1, ensure_ascii=False)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli,
    "settings.md": settings,
    "errors.md": error_codes,
    "events.md": events,
    "metrics.md": metrics,
    "logs.md": logs,
    "openapi.json": openapi,
}


def made() -> dict[str, str]:
    """File name -> content."""
    return {name: page().rstrip() + "\n" for name, page in PAGES.items()}


def main() -> int:
    for name, text in made().items():
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
