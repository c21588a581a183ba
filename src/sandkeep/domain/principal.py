"""Who acts, and the key that proves it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Principal:
    key_id: str
    project_id: str


@dataclass(frozen=True)
class Key:
    """An API key without its secret. Times: seconds since the epoch."""

    id: str
    project_id: str
    name: str
    prefix: str
    created_at: float
    revoked_at: float | None = None
