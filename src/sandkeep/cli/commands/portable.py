"""sandkeep export and import"""

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

from sandkeep.cli.output import Progress, size
from sandkeep.cli.remote import Signalled, signals_as_errors
from sandkeep.cli.session import Session, pass_session

VARIABLE = "SANDKEEP_FILE_KEY"
_KEY_SIZE = 4096


@click.command()
@click.argument("ref", metavar="NAME")
@click.option("--output", "-o", metavar="FILE", required=True, help="Where to write it; - is standard output.")
@click.option("--key-file", metavar="PATH", help="Write the key of the file here, not to the screen; must be new.")
@pass_session
def export(session: Session, ref: str, output: str, key_file: str | None) -> None:
    """Write what is stopped or paused on disk into one encrypted file, for `sandkeep import` on another machine. Memory goes
    along; snapshots do not. The sandbox stays as it is. The key of the file is printed once (standard error) and kept nowhere.

    \b
    Examples:
      sandkeep stop dev && sandkeep export dev --output dev.sandkeep --key-file dev.key
      sandkeep export dev --output - --key-file dev.key | ssh elsewhere 'cat > dev.sandkeep'
    """
    from sandkeep.sdk.portable import fresh_file_key

    if output == "-" and session.as_json:
        raise click.UsageError("--json and --output - both want standard output")
    target = _target(output)
    sandbox, key = session.sandbox(ref), fresh_file_key()
    written = _write_key(key_file, key)
    try:
        with _ends_by_signal(), Progress(session, "exporting", None) as progress:
            sandbox.export(target, key=key, progress=progress.add)
    except BaseException:
        if written:
            written.unlink(missing_ok=True)  # it opens nothing
        raise
    where = "standard output" if output == "-" else output
    if not key_file:
        session.note(f"key: {key}")
    if output != "-" or session.as_json:
        told = {"file": output, "bytes": progress.count, "key": None if key_file else key, "key_file": key_file}
        session.say(f"{sandbox.name or sandbox.id} is in {where} ({size(progress.count)})", told)


@click.command("import")
@click.argument("file", metavar="FILE")
@click.option("--name", metavar="N", help="What it is called here (default: as it was there).")
@click.option("--disk-only", is_flag=True, help="Leave its memory aside: it then boots from its disk.")
@click.option("--key-file", metavar="PATH", help=f"Where the key of the file is (or {VARIABLE}; else it is asked for).")
@pass_session
def import_(session: Session, file: str, name: str | None, disk_only: bool, key_file: str | None) -> None:
    """Make a new sandbox from a file of `sandkeep export`: with an id and an identity of its own, and all that was agreed
    (labels, limits, network, environment, policies). It is then stopped, or paused with its memory. FILE - is standard input.

    \b
    Examples:
      sandkeep import dev.sandkeep --key-file dev.key
      sandkeep import dev.sandkeep --name dev2 --disk-only
    """
    from sandkeep.sdk import Sandbox
    from sandkeep.sdk.requests import fresh_key

    key, once = _read_key(key_file, file), fresh_key()
    with _ends_by_signal(), _source(file) as source:
        total = os.fstat(source.fileno()).st_size if file != "-" else None
        with Progress(session, "importing", total) as progress:
            made = Sandbox.from_file(
                source,
                key,
                name=name,
                disk_only=disk_only,
                idempotency_key=once,
                progress=progress.add,
                client=session.client(),
            )
    held = " on disk" if made.phase == "paused" else ""
    session.say(f"{made.name or made.id} is {made.phase}{held} ({made.id}, {made.runtime})", made.view)


@contextlib.contextmanager
def _ends_by_signal() -> Iterator[None]:
    """What was begun is taken back when this program is told to end."""
    try:
        with signals_as_errors():
            yield
    except Signalled as ended:
        click.get_current_context().exit(128 + ended.number)


def _target(output: str) -> str | IO[bytes]:
    if output != "-":
        if os.path.isdir(output):
            raise click.UsageError(f"--output {output}: it is a folder; name the file")
        folder = os.path.dirname(output) or "."
        if not os.path.isdir(folder):
            raise click.UsageError(f"--output {output}: there is no folder {folder}")
        return output
    if sys.stdout.isatty():
        raise click.UsageError("this is no file for a terminal: --output FILE, or pass it on")
    return sys.stdout.buffer


@contextlib.contextmanager
def _source(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        fd = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise click.UsageError(f"{file}: {error.strerror}") from error
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise click.UsageError(f"{file}: it is a folder")
    with os.fdopen(fd, "rb") as opened:
        yield opened


def _write_key(path: str | None, key: str) -> Path | None:
    """Before anything that it opens is there."""
    if path is None:
        return None
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise click.UsageError(f"--key-file {path}: {error.strerror}") from error
    with os.fdopen(fd, "w") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
    return Path(path)


def _read_key(path: str | None, file: str) -> str:
    if path is not None:
        try:
            with open(path) as opened:
                key = opened.read(_KEY_SIZE).strip()
            if not key.isprintable():
                raise click.UsageError(f"--key-file {path}: that is no key")
            return key
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"--key-file {path}: {getattr(error, 'strerror', 'it is no text')}") from error
    if found := os.environ.get(VARIABLE):
        return found.strip()
    if file == "-" or not sys.stdin.isatty():
        raise click.UsageError(f"the key of the file is needed: --key-file PATH, or {VARIABLE}")
    return str(click.prompt("key of the file", hide_input=True, err=True)).strip()
