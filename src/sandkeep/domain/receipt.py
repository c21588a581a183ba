"""A receipt: what was checked before a sandbox that came back, or was made from another, was let into the world."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """name: what was agreed; detail: what was found, for people."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Receipt:
    """event: resume, fork, rollback, promote; at: seconds since the epoch."""

    event: str
    at: float
    checks: tuple[Check, ...]

    @property
    def failed(self) -> Check | None:
        return next((check for check in self.checks if not check.ok), None)


def receipt_from(data: dict[str, Any] | None) -> Receipt | None:
    if data is None:
        return None
    return Receipt(data["event"], data["at"], tuple(Check(**check) for check in data["checks"]))
