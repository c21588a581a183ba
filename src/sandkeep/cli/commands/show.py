"""sandkeep show"""

from typing import TYPE_CHECKING

import click

from sandkeep.cli.commands.listing import runtime_cell
from sandkeep.cli.commands.timeline import summary
from sandkeep.cli.options import sandbox_argument
from sandkeep.cli.output import age, clock, size, span
from sandkeep.cli.printable import printable
from sandkeep.cli.session import Session, pass_session

if TYPE_CHECKING:
    from sandkeep.wire.sandboxes import ReceiptView, SandboxView

_AT_EXPIRY = {"ephemeral": "deleted", "volume": "stopped", "snapshot": "stopped", "full": "paused to disk"}


def _restarts(view: "SandboxView") -> str:
    if view.persistence == "ephemeral":
        return ": it is deleted"
    if not view.failures:
        return ""
    then = f", next try at {clock(view.restart_at)}" if view.restart_at else ""
    return f" (failed {'once' if view.failures == 1 else f'{view.failures} times in a row'}{then})"


def _persistence(view: "SandboxView") -> str:
    rules: list[str] = [view.persistence]
    if view.commit:
        rules.append(f"a session is committed {view.commit.replace('-', ' ').replace('manual', 'by hand')}")
    if view.pause_or_disk:
        rules.append("a pause may become a stop")
    return ", ".join(rules)


def _show_receipt(session: Session, view: "ReceiptView") -> None:
    lines = [f"{view.event} at {clock(view.at)} ({age(view.at)} ago)"]
    lines += [f"{'ok' if one.ok else 'WRONG':<7}{one.name:<13}{printable(one.detail)}" for one in view.checks]
    session.say("\n".join(lines), view)


@click.command()
@sandbox_argument
@click.option("--receipt", is_flag=True, help="What was checked before it was let into the world again.")
@pass_session
def show(session: Session, ref: str, receipt: bool) -> None:
    """Show a sandbox: what it is, its phase and why it is in it.

    \b
    Examples:
      sandkeep show dev
      sandkeep show dev --json | jq .phase
      sandkeep show dev --receipt
    """
    sandbox = session.sandbox(ref)
    if receipt:
        _show_receipt(session, sandbox.receipt())
        return
    view = sandbox.view
    phase = f"{view.phase} (held in {view.hold})" if view.hold else view.phase
    lines = [
        ("name", view.name or "-"),
        ("id", view.id),
        ("phase", f"{phase} for {age(view.since)}: {view.reason}" if view.reason else f"{phase} for {age(view.since)}"),
        ("template", f"{view.template} ({view.template_id})"),
        ("runtime", runtime_cell(view.runtime, view.trust)),
        ("persistence", _persistence(view)),
        ("on failure", view.on_failure + _restarts(view)),
        ("resources", f"{view.cpus:g} cpus, {size(view.memory)} memory, {size(view.disk)} disk, {view.pids} processes"),
        ("network", view.network),
        ("created", f"{clock(view.created_at)} ({age(view.created_at)} ago)"),
    ]
    if view.expires_at is not None:
        then = "deleted" if view.on_expiry == "delete" else _AT_EXPIRY.get(view.persistence, "ended")
        lifetime = f" (lifetime {span(view.ttl)})" if view.ttl is not None else ""
        lines.append(("expires", f"{clock(view.expires_at)}{lifetime}, then it is {then}"))
    if view.timeline is not None:
        lines.append(("timeline", summary(view.timeline)))
    lines += [("label", f"{key}={value}") for key, value in sorted(view.labels.items())]
    lines += [("env", f"{key}={value}") for key, value in sorted(view.env.items())]
    for condition in view.conditions:
        holds = "yes" if condition.value else "no"
        lines.append(("condition", f"{condition.kind}: {holds}, {condition.reason} ({age(condition.at)} ago)"))
    session.say("\n".join(f"{name + ':':<13}{printable(text)}" for name, text in lines), view)
