"""A template: our versioned starting point for sandboxes."""

from dataclasses import dataclass, field
from enum import StrEnum


class TemplatePhase(StrEnum):
    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"
    DELETING = "deleting"


@dataclass(frozen=True)
class Template:
    """size: bytes; times: seconds since the epoch; `parent` the id of the template it was built from."""

    id: str
    project_id: str
    name: str
    phase: TemplatePhase
    created_at: float
    size: int = 0
    parent: str | None = None
    steps: tuple[str, ...] = ()
    reason: str = ""
    log: str = ""
    labels: dict[str, str] = field(default_factory=dict)
