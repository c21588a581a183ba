"""Runs a command in a sandbox as if it were here: output and input passed on, signals, the exit code."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from sandkeep.cli.session import Session
from sandkeep.cli.terminal import interact, window

if TYPE_CHECKING:
    from sandkeep.sdk import Process, Sandbox

OWN_FAILURE, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
"""As of shells and container tools: Sandkeep failed; the command is there but cannot run; there is no such command."""
BROKEN_PIPE = 141
# A paused sandbox is waited for this long, seconds.
PATIENCE = 24 * 3600.0
_BLOCK = 1 << 16


class Signalled(Exception):
    """This program was told to end."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextlib.contextmanager
def signals_as_errors() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Signalled, so that what was made remotely is cleaned up."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise Signalled(number)

    wanted = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in wanted}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def exit_code_of(session: Session, act: Callable[[], int]) -> int:
    """The exit code of a command that runs another: its own, 128+n when a signal or a closed pipe ended us."""
    session.failure_code = OWN_FAILURE
    try:
        with signals_as_errors():
            code = act()
            sys.stdout.flush()
            return code
    except Signalled as ended:
        return 128 + ended.number
    except BrokenPipeError:
        # The interpreter must not complain about what is left in the buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def run_remote(
    session: Session,
    sandbox: "Sandbox",
    command: Sequence[str],
    *,
    stdin: bool,
    tty: bool,
    user: str | None,
    cwd: str | None,
    env: Mapping[str, str],
    timeout: str | None,
    no_resume: bool = False,
    snapshot_first: bool = False,
) -> int:
    """The exit code: the command's, 128+n after a signal. `command` is argv; none with `tty` is a login shell.

    Raises Signalled after having killed the command, when this program was told to end.
    """
    if tty:
        if timeout is not None:
            raise click.UsageError("--timeout cannot be used with a terminal")
        if snapshot_first:
            sandbox.snapshots.create(cause="exec")
        columns, rows = window()
        terminal = sandbox.open_terminal(
            list(command),
            columns=columns,
            rows=rows,
            user=user,
            cwd=cwd,
            env=env,
            no_resume=no_resume,
            resume_within=PATIENCE,
        )
        return interact(terminal)
    process = _started(
        session,
        sandbox,
        list(command),
        user=user,
        cwd=cwd,
        env=env,
        timeout=timeout,
        stdin=stdin,
        no_resume=no_resume,
        snapshot_first=snapshot_first,
        resume_within=PATIENCE,
    )
    try:
        return _collect(session, process, stdin) if session.as_json else _stream(session, process, stdin)
    except (Signalled, BrokenPipeError):
        process.kill()
        raise
    finally:
        process.detach()


def _started(session: Session, sandbox: "Sandbox", command: list[str], **options: Any) -> "Process":
    """A command that cannot be started has an exit code of its own; the error tells why."""
    from sandkeep.sdk.errors import InvalidArgument

    try:
        return sandbox.start_process(command, **options)
    except InvalidArgument as error:
        if "not found in PATH" in error.message or "no such file" in error.message:
            session.failure_code = NOT_FOUND
        elif "permission denied" in error.message:
            session.failure_code = NOT_EXECUTABLE
        raise


def _stream(session: Session, process: "Process", stdin: bool) -> int:
    from sandkeep.sdk import Output

    if stdin:
        threading.Thread(target=_pass_input, args=(process,), daemon=True).start()
    outputs = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    for event in process:
        if isinstance(event, Output):
            target = outputs.get(event.stream, sys.stdout.buffer)
            target.write(event.data)
            target.flush()
        else:
            session.note(f"sandkeep: {event.count} bytes of output were lost while the connection was broken")
    result = process.wait()
    if result.timed_out:
        session.note("sandkeep: the command was killed at its timeout")
    elif result.out_of_memory:
        session.note("sandkeep: the command was killed because memory ran out")
    return result.exit_code


def _collect(session: Session, process: "Process", stdin: bool) -> int:
    result = process.communicate(sys.stdin.buffer.read() if stdin else None)
    fields = ("exit_code", "signal", "stdout", "stderr", "timed_out", "out_of_memory", "truncated", "duration", "pid")
    session.say("", {name: getattr(result, name) for name in fields})
    return result.exit_code


def _pass_input(process: "Process") -> None:
    from sandkeep.sdk import SandkeepError

    # An ended process takes no input: nobody is to be told.
    with contextlib.suppress(SandkeepError, OSError):
        while block := os.read(sys.stdin.fileno(), _BLOCK):
            process.write(block)
        process.close_stdin()
