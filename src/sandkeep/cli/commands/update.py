"""sandkeep update"""

from typing import Any

import click

from sandkeep.cli.options import label_option, sandbox_argument
from sandkeep.cli.session import Session, pass_session


@click.command()
@sandbox_argument
@label_option
@click.option("--remove-label", "removed", metavar="K", multiple=True, help="A label to remove; may be repeated.")
@click.option("--cpus", metavar="C", type=float, help="Processors.")
@click.option("--memory", metavar="M", help="Like 512MiB or 2G.")
@click.option("--disk", metavar="D", help="Like 16GiB.")
@click.option("--pids", metavar="N", type=int, help="Processes at most.")
@click.option("--ttl", metavar="T", help="Lifetime from now on, like 1h; `none` removes it.")
@click.option("--on-expiry", type=click.Choice(["default", "delete"]), help="What the end of its lifetime does.")
@click.option(
    "--pause-or-disk/--no-pause-or-disk", default=None, help="A pause that cannot save memory keeps the disk."
)
@click.option(
    "--on-failure",
    type=click.Choice(["restart", "stop", "leave"]),
    help="What follows when its machine ends by itself.",
)
@pass_session
def update(
    session: Session, /, ref: str, labels: dict[str, str], removed: tuple[str, ...], ttl: str | None, **spec: Any
) -> None:
    """Change what is given; the rest stays.

    \b
    Examples:
      sandkeep update dev --memory 4GiB --cpus 4
      sandkeep update dev --ttl 2h --on-expiry delete
      sandkeep update dev --label stage=test --remove-label old
    """
    if not labels and not removed and ttl is None and all(value is None for value in spec.values()):
        raise click.UsageError("nothing to change")
    sandbox = session.sandbox(ref)
    if labels or removed:
        kept = {key: value for key, value in sandbox.labels.items() if key not in removed}
        spec["labels"] = kept | labels
    if ttl is not None:
        spec["ttl"] = None if ttl == "none" else ttl
    before = sandbox.memory
    sandbox.update(**spec)
    if (
        sandbox.runtime == "gvisor"
        and sandbox.memory > before
        and sandbox.phase not in ("stopped", "archived", "failed")
    ):
        session.note("a running guest on gVisor has more memory from its next start, or resume from disk")
    session.say(f"{sandbox.name or sandbox.id} is updated", sandbox.view)
