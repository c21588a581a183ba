"""sandkeep show"""

from typing import TYPE_CHECKING

import click

from sandkeep.cli.commands.listing import runtime_cell
from sandkeep.cli.options import sandbox_argument
from sandkeep.cli.output import age, clock, size, span
from sandkeep.cli.printable import printable
from sandkeep.cli.session import Session, pass_session

if TYPE_CHECKING:
    from sandkeep.wire.sandboxes import SandboxView

_AT_EXPIRY = {"ephemeral": "deleted", "volume": "stopped", "full": "paused to disk"}


def _restarts(view: "SandboxView") -> str:
    if view.persistence == "ephemeral":
        return ": it is deleted"
    if not view.failures:
        return ""
    then = f", next try at {clock(view.restart_at)}" if view.restart_at else ""
    return f" (failed {'once' if view.failures == 1 else f'{view.failures} times in a row'}{then})"


@click.command()
@sandbox_argument
@pass_session
def show(session: Session, ref: str) -> None:
    """Show a sandbox: what it is, its phase and why it is in it.

    \b
    Examples:
      sandkeep show dev
      sandkeep show dev --json | jq .phase
    """
    sandbox = session.sandbox(ref)
    view = sandbox.view
    phase = f"{view.phase} (held in {view.hold})" if view.hold else view.phase
    lines = [
        ("name", view.name or "-"),
        ("id", view.id),
        ("phase", f"{phase} for {age(view.since)}: {view.reason}" if view.reason else f"{phase} for {age(view.since)}"),
        ("template", f"{view.template} ({view.template_id})"),
        ("runtime", runtime_cell(view.runtime, view.trust)),
        ("persistence", view.persistence + (", a pause may become a stop" if view.pause_or_disk else "")),
        ("on failure", view.on_failure + _restarts(view)),
        ("resources", f"{view.cpus:g} cpus, {size(view.memory)} memory, {size(view.disk)} disk, {view.pids} processes"),
        ("network", view.network),
        ("created", f"{clock(view.created_at)} ({age(view.created_at)} ago)"),
    ]
    if view.expires_at is not None:
        then = "deleted" if view.on_expiry == "delete" else _AT_EXPIRY.get(view.persistence, "ended")
        lifetime = f" (lifetime {span(view.ttl)})" if view.ttl is not None else ""
        lines.append(("expires", f"{clock(view.expires_at)}{lifetime}, then it is {then}"))
    lines += [("label", f"{key}={value}") for key, value in sorted(view.labels.items())]
    lines += [("env", f"{key}={value}") for key, value in sorted(view.env.items())]
    for condition in view.conditions:
        holds = "yes" if condition.value else "no"
        lines.append(("condition", f"{condition.kind}: {holds}, {condition.reason} ({age(condition.at)} ago)"))
    session.say("\n".join(f"{name + ':':<13}{printable(text)}" for name, text in lines), view)
