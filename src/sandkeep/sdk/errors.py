"""Every error that the SDK raises. The classes mirror the server's tree: the same codes, sentences and hints.

SandkeepError
├── InvalidArgument           the request is wrong in itself
│   ├── Unsupported           right in itself, but this runtime, host or version cannot do it
│   └── ConfigError           no address or no key; a configuration file that cannot be read
├── Unauthenticated           no key, or not a valid one
├── PermissionDenied          a valid key that may not do this
├── NotFound                  there is no such thing (or not for this key)
│   └── ProcessLost           the process did not survive (a stop, a start, or its result was kept too long ago)
├── Conflict                  it is there, but not in the shape or phase that the request needs
│   ├── AlreadyExists         the name is taken by something with another spec
│   ├── Busy                  another operation is changing it right now
│   ├── InUse                 something still needs it
│   └── Superseded            the server was overtaken by a newer operation
├── TooLarge                  a body, an output or an upload above its limit
├── QuotaExceeded             your own quota or rate; carries retry_after
├── NoCapacity                the host lacks memory, disk or addresses
├── PauseFailed               the pause did not happen; the sandbox runs on
├── GuestError                the agent in the sandbox answered with an error
│   └── GuestUnreachable      the agent in the sandbox does not answer
├── Unavailable               a part of the platform does not answer now
│   ├── ConnectionFailed      the server cannot be reached; nothing was done
│   └── ConnectionLost        the connection broke after the request was sent; it may have been carried out
│       └── StreamLost        a stream could not be attached again before its deadline
├── StorageFailed             the host's disk fails: read-only, or errors of input and output
├── DeadlineExceeded          it took longer than it may
├── VersionMismatch           this SDK and the server do not speak the same version
├── UnsafeArchive             a tree from a sandbox named something outside its target; nothing there was touched
└── Internal                  the server's fault

Each has a stable `code`, a sentence (`str(error)`), a `hint` that says what to do next (or None), `retry_after` in
seconds where the server said so, the HTTP `status` where there was one, and `details` for machines.
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from sandkeep.wire.agent_hints import hint_for


class SandkeepError(Exception):
    code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        retry_after: float | None = None,
        status: int | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after = retry_after
        self.status = status
        self.details = details


class InvalidArgument(SandkeepError):
    code = "invalid_argument"


class Unsupported(InvalidArgument):
    code = "unsupported"


class ConfigError(InvalidArgument):
    code = "config_error"


class Unauthenticated(SandkeepError):
    code = "unauthenticated"


class PermissionDenied(SandkeepError):
    code = "permission_denied"


class NotFound(SandkeepError):
    code = "not_found"


class ProcessLost(NotFound):
    code = "process_lost"


class Conflict(SandkeepError):
    code = "conflict"


class AlreadyExists(Conflict):
    code = "already_exists"


class Busy(Conflict):
    code = "busy"


class InUse(Conflict):
    code = "in_use"


class Superseded(Conflict):
    code = "superseded"


class TooLarge(SandkeepError):
    code = "too_large"


class QuotaExceeded(SandkeepError):
    code = "quota_exceeded"


class NoCapacity(SandkeepError):
    code = "no_capacity"


class PauseFailed(SandkeepError):
    code = "pause_failed"


class GuestError(SandkeepError):
    code = "guest_error"


class GuestUnreachable(GuestError):
    code = "guest_unreachable"


class Unavailable(SandkeepError):
    code = "unavailable"


class ConnectionFailed(Unavailable):
    code = "connection_failed"


class ConnectionLost(Unavailable):
    code = "connection_lost"


class StreamLost(ConnectionLost):
    code = "stream_lost"


class StorageFailed(SandkeepError):
    code = "storage_failed"


class DeadlineExceeded(SandkeepError):
    code = "deadline_exceeded"


class VersionMismatch(SandkeepError):
    code = "version_mismatch"


class UnsafeArchive(SandkeepError):
    code = "unsafe_archive"


class Internal(SandkeepError):
    code = "internal"


def every_error() -> dict[str, type[SandkeepError]]:
    """code -> class."""
    found: dict[str, type[SandkeepError]] = {}
    waiting: list[type[SandkeepError]] = list(SandkeepError.__subclasses__())
    while waiting:
        kind = waiting.pop(0)
        found[kind.code] = kind
        waiting.extend(kind.__subclasses__())
    return found


_BY_STATUS: dict[int, type[SandkeepError]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    429: QuotaExceeded,
    502: GuestError,
    503: Unavailable,
    504: DeadlineExceeded,
    507: NoCapacity,
}

# The agent's Connect codes. `unauthenticated` there means an unknown user, never a bad key: the server holds the token.
_BY_CONNECT: dict[str, type[SandkeepError]] = {
    "invalid_argument": InvalidArgument,
    "unauthenticated": InvalidArgument,
    "permission_denied": PermissionDenied,
    "not_found": NotFound,
    "already_exists": AlreadyExists,
    "failed_precondition": Conflict,
    "out_of_range": InvalidArgument,
    "resource_exhausted": GuestError,
    "deadline_exceeded": DeadlineExceeded,
    "unimplemented": Unsupported,
    "unavailable": GuestUnreachable,
}
_PROBLEM_MEMBERS = {"type", "title", "status", "detail", "code", "hint", "instance", "details"}


def from_connect(error: Mapping[str, Any], status: int | None = None) -> SandkeepError:
    """The agent's error, as sent in a Connect answer or at the end of a stream."""
    code = str(error.get("code", ""))
    message = str(error.get("message") or code or "the agent failed")
    return _BY_CONNECT.get(code, GuestError)(message, hint=hint_for(message), status=status, agent_code=code)


def from_answer(status: int, headers: Mapping[str, str], body: bytes) -> SandkeepError:
    """What an HTTP answer of 400 or more means. Never fails, whatever a proxy or an agent wrote into the body."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        text = body[:200].decode("utf-8", "replace").strip()
        kind = _BY_STATUS.get(status, Internal)
        return kind(f"the server answered {status}" + (f": {text}" if text else ""), status=status)
    retry_after = _seconds(headers.get("retry-after"))
    if "problem" not in headers.get("content-type", "") and "detail" not in problem:
        if isinstance(problem.get("code"), str):
            return from_connect(problem, status)
        kind = InvalidArgument if status == 401 else _BY_STATUS.get(status, GuestError)
        message = str(problem.get("message") or f"the agent answered {status}")
        return kind(message, hint=hint_for(message), status=status, agent_code=status)
    error = from_problem(problem, status)
    error.retry_after = retry_after
    return error


def from_problem(problem: Mapping[str, Any], status: int | None = None) -> SandkeepError:
    """An error that the server says as problem details (RFC 9457)."""
    told = problem.get("status")
    status = status or (told if isinstance(told, int) else 500)
    detail = problem.get("detail") or problem.get("title") or f"the server answered {status}"
    kind = every_error().get(str(problem.get("code")), _BY_STATUS.get(status, Internal))
    hint = problem.get("hint")
    error = kind(str(detail), hint=hint if isinstance(hint, str) else None, status=status)
    error.details = {str(key): value for key, value in problem.items() if key not in _PROBLEM_MEMBERS}
    if isinstance(problem.get("details"), dict):
        error.details |= problem["details"]
    return error


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None
