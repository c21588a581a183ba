"""Runs the click group, and turns every failure into one line, a hint and an exit code."""

import json
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

from sandkeep.cli.group import root
from sandkeep.cli.session import Session

EXIT_CODES: dict[str, int] = {
    "invalid_argument": 2, "unsupported": 2, "config_error": 2,
    "not_found": 3, "process_lost": 3,
    "unauthenticated": 4, "permission_denied": 4,
    "conflict": 5, "already_exists": 5, "busy": 5, "in_use": 5, "superseded": 5, "pause_failed": 5,
    "quota_exceeded": 6, "no_capacity": 6, "too_large": 6,
    "unavailable": 7, "connection_failed": 7, "connection_lost": 7, "stream_lost": 7, "guest_unreachable": 7,
    "deadline_exceeded": 8,
}  # fmt: skip
INTERRUPTED = 130


def run(arguments: Sequence[str]) -> int:
    """The exit code. Errors of the SDK and of the host's commands are known by their `code` and `hint`."""
    state = Session()
    # So that an error in the arguments themselves is JSON too.
    state.as_json = "--json" in _before_command(arguments)
    warnings.showwarning = _warn
    try:
        # ctx.exit(n) arrives as the result.
        code = root().main(list(arguments), prog_name="sandkeep", standalone_mode=False, obj=state)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.NoSuchOption as error:
        where = error.ctx.command_path if error.ctx else "sandkeep"
        takes_command = error.ctx is not None and error.ctx.info_name in ("exec", "run") and "--" not in arguments
        hint = f"put -- before the command: {where} {'dev ' if where.endswith('exec') else ''}-- ls -l"
        return _fail(state, "usage", error.format_message(), hint if takes_command else f"see `{where} --help`", 2)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "sandkeep"
        return _fail(state, "usage", error.format_message(), f"see `{where} --help`", 2)
    except click.ClickException as error:
        return _fail(state, "failed", error.format_message(), None, error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except OSError as error:
        return _fail(state, "os_error", str(error), None, 1)
    except Exception as error:
        code = getattr(error, "code", None)
        if not isinstance(code, str):
            raise
        details = {name: value for name, value in vars(error).items() if name in ("status", "details") and value}
        return _fail(
            state,
            code,
            getattr(error, "message", str(error)),
            getattr(error, "hint", None),
            state.failure_code or EXIT_CODES.get(code, 1),
            **details,
        )
    finally:
        state.close()


def _fail(state: Session, code: str, message: str, hint: str | None, exit_code: int, **more: Any) -> int:
    if state.as_json:
        error = {"code": code, "message": message, "hint": hint, **more}
        sys.stderr.write(json.dumps({"error": error}, default=str) + "\n")
    else:
        sys.stderr.write(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))
    return exit_code


def _before_command(arguments: Sequence[str]) -> list[str]:
    """Our own arguments; what follows `--` belongs to somebody's command."""
    return list(arguments[: arguments.index("--")] if "--" in arguments else arguments)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        sys.stderr.write(f"warning: {message}\n")
