"""sandkeep diff"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from sandkeep.cli.output import counted, size, working
from sandkeep.cli.points import Point, PointName
from sandkeep.cli.printable import printable
from sandkeep.cli.session import Session, pass_session

if TYPE_CHECKING:
    from sandkeep.wire.browse import DiffView, FileChangeView

_SIGNS = {"added": "+", "changed": "~", "removed": "-"}
_POINT = PointName(or_now=True)


@click.command()
@click.argument("before", metavar="A", type=_POINT)
@click.argument("after", metavar="[B]", type=_POINT, required=False)
@click.option("--files", "only", flag_value="files", help="Files alone.")
@click.option("--packages", "only", flag_value="packages", help="Packages alone: dpkg, pip, npm.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(1, 100_000), default=10_000, help="Files at most (default: 10,000)."
)
@pass_session
def diff(session: Session, before: Point, after: Point | None, only: str | None, limit: int) -> None:
    """Show which files and packages differ between two points in time: each NAME@SNAPSHOT, a snapshot's id, or NAME as it is now.
    Without B: A's sandbox as it is now. Nothing is started or stopped.

    \b
    Examples:
      sandkeep diff dev@clean
      sandkeep diff dev@clean dev@later --packages
      sandkeep diff try-1 try-2 --files
      sandkeep diff dev@clean dev --json | jq -r '.files[] | select(.change == "removed").path'
    """
    other = str(after) if after else before.sandbox
    with working(session, f"comparing {before} with {other}"):
        view = session.client().diff(str(before), other, limit=limit if only != "packages" else 0)
    if session.as_json:
        shown = view.model_dump(mode="json")
        session.say("", {only: shown[only]} if only else shown)
        return
    lines = [*(_files(view) if only != "packages" else ()), *(_packages(view) if only != "files" else ())]
    session.say("\n".join(lines))
    if not lines:
        session.note("no difference")
    if only != "packages":
        _remarks(session, view)


def _files(view: "DiffView") -> Iterator[str]:
    for change in view.files:
        yield f"{_SIGNS[change.change]} {printable(change.path)}{_how(change)}"


def _how(change: "FileChangeView") -> str:
    """What of it: sizes of what was written, modes and owners of what was changed."""
    before, after = change.before, change.after
    found = after or before
    if before is None or after is None:
        return (
            f"  {size(found.size)}"
            if found and found.type == "file"
            else "/"
            if found and found.type == "directory"
            else ""
        )
    said = []
    for what in change.what:
        if what == "type":
            said.append(f"{before.type} -> {after.type}")
        elif what == "content" and after.target is not None:
            said.append(printable(f"{before.target} -> {after.target}"))
        elif what == "content":
            said.append(f"{size(before.size)} -> {size(after.size)}")
        elif what == "mode":
            said.append(f"mode {before.mode:o} -> {after.mode:o}")
        elif what == "owner":
            said.append(f"owner {before.uid}:{before.gid} -> {after.uid}:{after.gid}")
        else:
            said.append(what)
    return "  " + ", ".join(said)


def _packages(view: "DiffView") -> Iterator[str]:
    for change in view.packages:
        versions = " -> ".join(version for version in (change.before, change.after) if version is not None)
        place = f"  ({change.place})" if change.place else ""
        yield printable(f"{_SIGNS[change.change]} {change.manager} {change.name} {versions}{place}")


def _remarks(session: Session, view: "DiffView") -> None:
    counts = view.counts
    total = counts.added + counts.changed + counts.removed
    if view.truncated:
        session.note(f"{total - len(view.files)} more; --limit shows them")
    if total:
        what = f"{counts.added} added, {counts.changed} changed, {counts.removed} removed"
        session.note(f"{counted(total, 'file')}: {what}")
    for path in view.left_out:
        session.note(f"too deep, not compared: {path}")
