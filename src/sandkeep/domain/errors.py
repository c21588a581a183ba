"""Every error that a caller can meet.

SandkeepError
├── InvalidArgument           the request is wrong in itself
│   └── Unsupported           right in itself, but this runtime, host or version cannot do it
├── Unauthenticated           no key, or not a valid one
├── PermissionDenied          a valid key that may not do this
├── NotFound                  there is no such thing (or not for this caller)
├── Conflict                  it is there, but not in the shape or phase that the request needs
│   ├── AlreadyExists         the name is taken by something with another spec; lists the fields
│   ├── Busy                  another operation is changing it right now
│   ├── InUse                 something still needs it
│   └── Superseded            the call carries an old epoch (fencing)
├── TooLarge                  a body, an output or an upload above its limit
├── QuotaExceeded             the caller's own quota or rate (429); carries retry_after
├── NoCapacity                the host lacks memory, disk or addresses (507); carries what is free and retry_after
├── PauseFailed               the pause did not happen; the sandbox runs on; says why
├── GuestError                the agent inside answered with an error
│   └── GuestUnreachable      the agent inside does not answer
├── Unavailable               a part of the platform does not answer now; carries retry_after
├── StorageFailed             the host's disk fails: read-only, or errors of input and output
├── DeadlineExceeded          it took longer than it may
└── Internal                  our fault

Each carries a stable `code`, a sentence, a `hint` that says what to do next, and `details` for machines. Nothing here
knows HTTP: edge/gate maps errors to statuses.
"""

from typing import Any, ClassVar


class SandkeepError(Exception):
    code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        retry_after: float | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after = retry_after
        self.details = details


class InvalidArgument(SandkeepError):
    code = "invalid_argument"


class Unsupported(InvalidArgument):
    code = "unsupported"


class Unauthenticated(SandkeepError):
    code = "unauthenticated"


class PermissionDenied(SandkeepError):
    code = "permission_denied"


class NotFound(SandkeepError):
    code = "not_found"


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


class StorageFailed(SandkeepError):
    code = "storage_failed"


class DeadlineExceeded(SandkeepError):
    code = "deadline_exceeded"


class Internal(SandkeepError):
    code = "internal"


def every_error() -> dict[str, type[SandkeepError]]:
    """code -> class, for the wire and the generated reference."""
    found: dict[str, type[SandkeepError]] = {}
    waiting: list[type[SandkeepError]] = list(SandkeepError.__subclasses__())
    while waiting:
        kind = waiting.pop(0)
        found[kind.code] = kind
        waiting.extend(kind.__subclasses__())
    return found
