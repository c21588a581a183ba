"""sandkeep snapshot"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from sandkeep.cli.commands import browse
from sandkeep.cli.options import sandbox_argument
from sandkeep.cli.output import age, brief, clock, size, table, working
from sandkeep.cli.points import POINT, Point
from sandkeep.cli.printable import printable
from sandkeep.cli.session import Session, pass_session

if TYPE_CHECKING:
    from sandkeep.wire.snapshots import SnapshotView


@click.group()
def snapshot() -> None:
    """Make, list, show, read and delete snapshots: moments of a sandbox, to go back to or to fork from.

    \b
    Examples:
      sandkeep snapshot create dev --name clean
      sandkeep snapshot cat dev@clean:/etc/hosts
      sandkeep rollback dev@clean
      sandkeep fork dev@clean --count 10
    """


for command in (browse.ls, browse.cat, browse.cp):
    snapshot.add_command(command)


@snapshot.command()
@sandbox_argument
@click.option("--name", metavar="S", help="Of the snapshot; without one it goes by its id.")
@click.option("--kind", type=click.Choice(["disk", "full"]), help="disk: the files (default); full: memory, too.")
@click.option("--tag", "tags", metavar="T", multiple=True, help="A word to find or keep it by; may be repeated.")
@pass_session
def create(session: Session, ref: str, name: str | None, kind: Any, tags: tuple[str, ...]) -> None:
    """Keep a sandbox as it is now; a running one goes on. A full snapshot keeps memory and processes, too; it resets the
    sandbox's connections to the outside. Prints the id alone when the output is not a terminal.

    \b
    Examples:
      sandkeep snapshot create dev --name clean
      sandkeep snapshot create dev --tag before-upgrade
      sandkeep snapshot create dev --kind full --name working
      id=$(sandkeep snapshot create dev) && sandkeep rollback "dev@$id"
    """
    with working(session, f"making a snapshot of {ref}"):
        view = session.sandbox(ref).snapshot(name, kind=kind, tags=tags or None)
    if session.as_json or not sys.stdout.isatty():
        session.say(view.id, view)
        return
    held = f"; its processes stood still for {brief(view.held)}" if view.held else ""
    session.say(f"{ref}@{view.name or view.id} is made ({view.id}, {view.kind}){held}")
    if view.connections_reset:
        session.note("note: the sandbox's connections to the outside were reset")


@snapshot.command("list")
@sandbox_argument
@pass_session
def list_(session: Session, ref: str) -> None:
    """List the snapshots of a sandbox, the oldest first. Where it went several ways from one, each way is a branch.

    WRITTEN is what a snapshot has that the one before it has not, FREES what its deletion would give back; both are computed
    in the background.

    \b
    Examples:
      sandkeep snapshot list dev
      sandkeep snapshot list dev --json | jq -r '.[] | select(.tags | index("nightly")).id'
    """
    found = session.sandbox(ref).snapshots.list()
    if found or session.as_json:
        heads = ("SNAPSHOT", "ID", "KIND", "WRITTEN", "FREES", "TAGS", "REASON", "AGE")
        session.say(table(heads, [row(branch, view) for branch, view in tree(found)]), found)
        measured = [view.measured_at for view in found if view.measured_at]
        if measured:
            session.note(f"sizes as of {age(measured[0])} ago")
    else:
        session.note(f"no snapshots; `sandkeep snapshot create {ref} --name NAME` makes one")


def row(branch: str, view: "SnapshotView") -> list[str]:
    tags = ", ".join(view.tags) or "-"
    sizes = size(view.written), size(view.freed)
    kind = f"{view.kind}, archived" if view.archived is not None else view.kind
    return [branch + (view.name or view.id), view.id, kind, *sizes, tags, view.reason or "-", age(view.created_at)]


def tree(snapshots: "Sequence[SnapshotView]") -> "Iterator[tuple[str, SnapshotView]]":
    """Each after its parent, with what is drawn before it. An only child stands right below its parent, or a long history
    would run out of the terminal; brothers are branches, and each is followed by what came of it."""
    known = {view.id for view in snapshots}
    children: dict[str | None, list[SnapshotView]] = defaultdict(list)
    for view in snapshots:
        children[view.parent if view.parent in known else None].append(view)

    def below(parent: str | None, lead: str) -> "Iterator[tuple[str, str, SnapshotView]]":
        """From the last to the first, as a stack takes them: what is drawn before it, and before what comes of it."""
        *others, last = children[parent]
        if not others:
            yield lead, lead, last
            return
        yield lead + "`- ", lead + "   ", last
        for view in reversed(others):
            yield lead + "|- ", lead + "|  ", view

    waiting = list(below(None, "")) if snapshots else []
    while waiting:
        branch, lead, view = waiting.pop()
        yield branch, view
        if view.id in children:
            waiting += below(view.id, lead)


@snapshot.command()
@click.argument("point", metavar="NAME@SNAPSHOT", type=POINT)
@pass_session
def show(session: Session, point: Point) -> None:
    """Show a snapshot: when and why it was made, and from what.

    \b
    Examples:
      sandkeep snapshot show dev@clean
      sandkeep snapshot show dev@clean --json | jq .parent
    """
    sandbox = session.sandbox(point.sandbox)
    view = sandbox.snapshots.get(point.snapshot)
    lines = [
        ("name", view.name or "-"),
        ("id", view.id),
        ("sandbox", f"{sandbox.name or '-'} ({view.sandbox_id})"),
        ("kind", view.kind),
        ("parent", view.parent or "-"),
        ("tags", ", ".join(view.tags) or "-"),
        ("reason", view.reason or "-"),
        ("created", f"{clock(view.created_at)} ({age(view.created_at)} ago)"),
        ("written", size(view.written)),
        ("frees", f"{size(view.freed)}{f', as of {age(view.measured_at)} ago' if view.measured_at else ''}"),
        ("stored", "here" if view.archived is None else f"archived: {size(view.archived)} in the object store"),
        ("held", f"{brief(view.held)}, in which its processes stood still" if view.held else "-"),
    ]
    session.say("\n".join(f"{name + ':':<9}{printable(text)}" for name, text in lines), view)


@snapshot.command()
@click.argument("points", metavar="NAME@SNAPSHOT...", type=POINT, nargs=-1, required=True)
@pass_session
def delete(session: Session, points: tuple[Point, ...]) -> None:
    """Delete snapshots for good. No other is harmed, and one that is not there does not keep the others.

    \b
    Examples:
      sandkeep snapshot delete dev@clean
      sandkeep snapshot delete dev@try-1 dev@try-2
    """
    from sandkeep.sdk.errors import NotFound

    deleted: list[str] = []
    missing: NotFound | None = None
    for point in points:
        try:
            with working(session, f"deleting {point}"):
                session.sandbox(point.sandbox).snapshots.delete(point.snapshot)
        except NotFound as error:
            missing = missing or error
            continue
        deleted.append(point)
        if not session.as_json:
            session.say(f"{point} is deleted")
    if session.as_json:
        session.say("", {"deleted": deleted})
    if missing is not None:
        raise missing
