"""sandkeep list"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from sandkeep.cli.options import PHASES, label_option
from sandkeep.cli.output import age, size, table
from sandkeep.cli.session import Session, pass_session

if TYPE_CHECKING:
    from sandkeep.sdk import Sandbox


@click.command()
@label_option
@click.option(
    "--phase",
    "phases",
    metavar="P",
    type=click.Choice(PHASES),
    multiple=True,
    help="Only in this phase; may be repeated.",
)
@click.option("-q", "--quiet", is_flag=True, help="Ids alone.")
@pass_session
def list_(session: Session, labels: dict[str, str], phases: Sequence[Any], quiet: bool) -> None:
    """List sandboxes.

    \b
    Examples:
      sandkeep list
      sandkeep list --label team=web --phase paused --phase stopped
      sandkeep list --json | jq -r '.[].id'
    """
    from sandkeep.sdk import Sandbox

    found = list(Sandbox.list(labels=labels or None, phases=phases or None, client=session.client()))
    if session.as_json:
        session.say("", [sandbox.view for sandbox in found])
    elif quiet:
        for sandbox in found:
            session.say(sandbox.id)
    elif found:
        heads = ("NAME", "ID", "PHASE", "TEMPLATE", "RUNTIME", "CPUS", "MEMORY", "DISK", "AGE")
        session.say(table(heads, [row(sandbox) for sandbox in found]))
    elif labels or phases:
        session.note("no sandbox is like that; `sandkeep list` shows all")
    else:
        session.note("no sandboxes; `sandkeep create --name dev` makes one")


def row(sandbox: "Sandbox") -> list[str]:
    return [
        sandbox.name or "-",
        sandbox.id,
        f"{sandbox.phase} ({sandbox.hold})" if sandbox.hold else sandbox.phase,
        sandbox.template,
        runtime_cell(sandbox.runtime, sandbox.trust),
        f"{sandbox.cpus:g}",
        size(sandbox.memory),
        size(sandbox.disk),
        age(sandbox.created_at),
    ]


def runtime_cell(runtime: str, trust: str) -> str:
    """A runtime that shares the host's kernel is never shown without saying so."""
    return runtime if trust == "untrusted code" else f"{runtime} ({trust})"
