"""sandkeep snapshot ls, cat, cp: what is in a snapshot, without starting anything"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandkeep.cli.commands.cp import done, replacing, safe_name, tree_done
from sandkeep.cli.output import Progress, clock, table, working
from sandkeep.cli.points import Place, PlaceName
from sandkeep.cli.session import Session, pass_session

if TYPE_CHECKING:
    from sandkeep.sdk import FileInfo


@click.command()
@click.argument("place", metavar="NAME[@SNAPSHOT][:/PATH]", type=PlaceName(or_now=True, path=False))
@pass_session
def ls(session: Session, place: Place) -> None:
    """List a folder of a snapshot, or of a disk as it is now. Nothing is started.

    \b
    Examples:
      sandkeep snapshot ls dev@clean
      sandkeep snapshot ls dev@clean:/etc/apt
      sandkeep snapshot ls dev:/var/log --json | jq -r '.[].name'
    """
    disk, path = session.sandbox(place.sandbox).snapshots, place.path or "/"
    with working(session, f"reading {place}"):
        found = disk.stat(place.snapshot or None, path, follow=True)
        rows = disk.ls(place.snapshot or None, path) if found.type == "directory" else [found]
    if rows or session.as_json:
        heads = ("MODE", "OWNER", "SIZE", "CHANGED", "NAME")
        session.say(table(heads, [_row(one) for one in rows]), [_facts(one) for one in rows])
    else:
        session.note("the folder is empty")


def _row(one: "FileInfo") -> list[str]:
    to = f" -> {one.symlink_target}" if one.symlink_target is not None else ""
    return [one.permissions, f"{one.owner}:{one.group}", str(one.size), clock(one.modified_at), one.name + to]


def _facts(one: "FileInfo") -> dict[str, Any]:
    """Names that are not UTF-8 as they can be shown."""
    facts = {name: getattr(one, name) for name in one.__dataclass_fields__}
    return {name: _text(value) if isinstance(value, str) else value for name, value in facts.items()}


def _text(value: str) -> str:
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@click.command()
@click.argument("place", metavar="NAME[@SNAPSHOT]:/PATH", type=PlaceName(or_now=True))
@pass_session
def cat(session: Session, place: Place) -> None:
    """Print a file of a snapshot, or of a disk as it is now.

    \b
    Examples:
      sandkeep snapshot cat dev@clean:/etc/hosts
      sandkeep snapshot cat dev@clean:/app/config.json | diff - config.json
    """
    disk = session.sandbox(place.sandbox).snapshots
    if session.as_json:
        content = disk.read(place.snapshot or None, place.path)
        session.say(
            "", {"path": _text(place.path), "content": content.decode("utf-8", "replace"), "bytes": len(content)}
        )
        return
    for chunk in disk.read_stream(place.snapshot or None, place.path):
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


@click.command()
@click.option("-r", "--recursive", is_flag=True, help="Whole trees.")
@click.option("--exclude", metavar="PATTERN", multiple=True, help="Leave out what matches; may be repeated.")
@click.argument("place", metavar="NAME[@SNAPSHOT]:/PATH", type=PlaceName(or_now=True))
@click.argument("target")
@pass_session
def cp(session: Session, recursive: bool, exclude: tuple[str, ...], place: Place, target: str) -> None:
    """Copy a file or a folder out of a snapshot, or of a disk as it is now, to here. Into TARGET when it is a folder, else under
    its name. Nothing outside of it is ever written.

    \b
    Examples:
      sandkeep snapshot cp dev@clean:/etc/hosts .
      sandkeep snapshot cp -r dev@clean:/home/user/src ./src-then
      sandkeep snapshot cp -r dev@clean:/app . --exclude node_modules
    """
    disk, snapshot = session.sandbox(place.sandbox).snapshots, place.snapshot or None
    found = disk.stat(snapshot, place.path, follow=True)
    local = Path(target)
    if local.is_dir() and found.name not in ("", ".", ".."):
        local = local / safe_name(found.name)
    if found.type == "directory":
        if not recursive:
            raise click.UsageError(f"{place.path} is a folder; use -r")
        with Progress(session, f"copying {place}") as progress:
            result = disk.read_tree(snapshot, place.path, local, exclude=exclude, progress=progress.add)
        tree_done(session, result)
        return
    if not local.parent.is_dir():
        raise click.UsageError(f"{local.parent} is no folder; make it first")
    with Progress(session, f"copying {place}", found.size) as progress, replacing(local, found) as file:
        for chunk in disk.read_stream(snapshot, place.path):
            file.write(chunk)
            progress.add(len(chunk))
    done(session, progress.count)
