"""Events: immutable facts in the past tense. Every name lives here."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class EventKind(StrEnum):
    SANDBOX_CREATED = "sandbox.created"
    SANDBOX_STARTING = "sandbox.starting"
    SANDBOX_STARTED = "sandbox.started"
    SANDBOX_PAUSING = "sandbox.pausing"
    SANDBOX_PAUSED = "sandbox.paused"
    SANDBOX_PAUSE_FAILED = "sandbox.pause_failed"
    SANDBOX_RESUMING = "sandbox.resuming"
    SANDBOX_RESUMED = "sandbox.resumed"
    SANDBOX_RESUME_FAILED = "sandbox.resume_failed"
    SANDBOX_STOPPING = "sandbox.stopping"
    SANDBOX_STOPPED = "sandbox.stopped"
    SANDBOX_UPDATED = "sandbox.updated"
    SANDBOX_FAILED = "sandbox.failed"
    SANDBOX_EXPIRED = "sandbox.expired"
    SANDBOX_OUT_OF_MEMORY = "sandbox.out_of_memory"
    SANDBOX_EXITED = "sandbox.exited"
    SANDBOX_ADOPTED = "sandbox.adopted"
    SANDBOX_DELETING = "sandbox.deleting"
    SANDBOX_DELETED = "sandbox.deleted"
    TEMPLATE_BUILD_STARTED = "template.build_started"
    TEMPLATE_READY = "template.ready"
    TEMPLATE_FAILED = "template.failed"
    TEMPLATE_DELETED = "template.deleted"
    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"


@dataclass(frozen=True)
class Event:
    """seq orders all events of an installation; at: seconds since the epoch; subject: the id it is about."""

    seq: int
    project_id: str
    at: float
    kind: EventKind
    subject: str
    reason: str = ""
    data: dict[str, Any] = field(default_factory=dict)
