"""sandkeep cp"""

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

import click

from sandkeep.cli.output import Progress, counted, size
from sandkeep.cli.session import Session, pass_session

if TYPE_CHECKING:
    from sandkeep.sdk import FileInfo, Sandbox, TreeResult

_BLOCK = 1 << 20
Place = tuple[str | None, str]


@click.command()
@click.option("-r", "--recursive", is_flag=True, help="Whole trees.")
@click.option("--exclude", metavar="PATTERN", multiple=True, help="Leave out what matches; may be repeated.")
@click.option(
    "--user", metavar="U", help="Whom it belongs to in the sandbox, where cp itself may do all that root may."
)
@click.argument("source")
@click.argument("target")
@pass_session
def cp(session: Session, recursive: bool, exclude: tuple[str, ...], user: str | None, source: str, target: str) -> None:
    """Copy files in or out, as cp does: into TARGET when it is a folder, else under its name. `-` is standard input or
    output. Nothing outside of a local TARGET is ever written.

    \b
    Examples:
      sandkeep cp notes.txt dev:/work/
      sandkeep cp -r ./src dev:/work/src --exclude node_modules
      sandkeep cp -r dev:/work/out ./out
      sandkeep cp dev:/var/log/app.log -
    """
    (here, local), (there, path) = place(source), place(target)
    if (here is None) == (there is None):
        raise click.UsageError("one of SOURCE and TARGET is in a sandbox, like dev:/work; the other is here")
    if there is not None:
        _in(session, session.sandbox(there), local, path, recursive, exclude, user)
    elif here is not None:
        _out(session, session.sandbox(here), local, path, recursive, exclude, user)


def place(text: str) -> Place:
    """(sandbox or None, path). A local path with a colon is written ./a:b."""
    name, colon, path = text.partition(":")
    drive = os.name == "nt" and len(name) == 1
    if not colon or not name or "/" in name or drive:
        return None, text
    return name, path or "."


def _in(
    session: Session,
    sandbox: "Sandbox",
    local: str,
    path: str,
    recursive: bool,
    exclude: tuple[str, ...],
    user: str | None,
) -> None:
    if local == "-":
        with Progress(session, "copying") as progress:
            sandbox.files.write(path, _counted(sys.stdin.buffer, progress), user=user)
        done(session, progress.count)
        return
    source = Path(local)
    if source.is_dir() and not recursive:
        raise click.UsageError(f"{local} is a folder; use -r")
    if not source.exists():
        raise click.UsageError(f"{local} is not there")
    into = path.endswith("/") or _is_folder(sandbox, path, user)
    name = source.resolve().name if into else PurePosixPath(path).name
    if source.is_dir():
        goal = str(PurePosixPath(path) / name) if into else path
        with Progress(session, f"copying {local}") as progress:
            result = sandbox.files.write_tree(source, goal, exclude=exclude, user=user, progress=progress.add)
        tree_done(session, result)
        return
    total = source.stat().st_size
    with Progress(session, f"copying {local}", total) as progress:
        if os.access(source, os.X_OK):
            # As a tree of one, since only that keeps the mode.
            folder = path if into else str(PurePosixPath(path).parent)
            sandbox.files.write_tree(source, folder, name=name, user=user, progress=progress.add)
        else:
            goal = str(PurePosixPath(path) / name) if into else path
            with source.open("rb") as file:
                sandbox.files.write(goal, _counted(file, progress), user=user)
    done(session, total)


def _out(
    session: Session,
    sandbox: "Sandbox",
    path: str,
    local: str,
    recursive: bool,
    exclude: tuple[str, ...],
    user: str | None,
) -> None:
    found = sandbox.files.stat(path, user=user)
    if found.type == "directory":
        if not recursive:
            raise click.UsageError(f"{path} is a folder; use -r")
        if local == "-":
            raise click.UsageError("a folder cannot go to standard output; `sandkeep exec NAME -- tar c FOLDER` can")
        target = Path(local)
        if target.is_dir() and found.name not in ("", ".", "/"):
            target = target / safe_name(found.name)
        with Progress(session, f"copying {path}") as progress:
            result = sandbox.files.read_tree(path, target, exclude=exclude, user=user, progress=progress.add)
        tree_done(session, result)
        return
    with Progress(session, f"copying {path}", found.size) as progress:
        if local == "-":
            for chunk in sandbox.files.read_stream(path, user=user):
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            return
        target = Path(local)
        if target.is_dir() or local.endswith("/"):
            target = target / safe_name(found.name)
        if not target.parent.is_dir():
            raise click.UsageError(f"{target.parent} is no folder; make it first")
        with replacing(target, found) as file:
            for chunk in sandbox.files.read_stream(path, user=user):
                file.write(chunk)
                progress.add(len(chunk))
    done(session, progress.count)


def _is_folder(sandbox: "Sandbox", path: str, user: str | None) -> bool:
    from sandkeep.sdk.errors import NotFound

    try:
        return sandbox.files.stat(path, user=user).type == "directory"
    except NotFound:
        return False


def safe_name(name: str) -> str:
    """The agent said this name: it must be one component."""
    if name in ("", ".", "..") or set(name) & {"/", "\\", "\0"}:
        raise click.ClickException(f"the sandbox gave a name that cannot be written here: {name!r}")
    return name


@contextlib.contextmanager
def replacing(target: Path, found: "FileInfo") -> Iterator[IO[bytes]]:
    """A file beside the target, which takes its place only when it is whole."""
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with fresh.open("xb") as file:
            yield file
        fresh.chmod(found.mode & 0o777)
        # A link or a device that is there is written through, as cp does; only a file is replaced.
        if target.exists() and not (target.is_file() and not target.is_symlink()):
            with fresh.open("rb") as reader, target.open("wb") as writer:
                while block := reader.read(_BLOCK):
                    writer.write(block)
        else:
            fresh.replace(target)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()


def _counted(file: IO[bytes], progress: Progress) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        progress.add(len(block))
        yield block


def done(session: Session, count: int) -> None:
    if session.as_json:
        session.say("", {"files": 1, "bytes": count})
    elif session.live:
        session.note(f"copied {size(count)}")


def tree_done(session: Session, result: "TreeResult") -> None:
    if session.as_json:
        session.say("", {name: getattr(result, name) for name in result.__dataclass_fields__})
        return
    if session.live:
        files, folders = counted(result.files, "file"), counted(result.folders, "folder")
        session.note(f"copied {files}, {folders}, {size(result.bytes)}")
    for line in result.skipped:
        session.note(f"skipped: {line}")
    if result.skipped_count > len(result.skipped):
        session.note(f"skipped: {result.skipped_count - len(result.skipped)} more")
