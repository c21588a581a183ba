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
    SANDBOX_ARCHIVING = "sandbox.archiving"
    SANDBOX_ARCHIVED = "sandbox.archived"
    SANDBOX_ARCHIVE_FAILED = "sandbox.archive_failed"
    SANDBOX_WAKING = "sandbox.waking"
    SANDBOX_WOKEN = "sandbox.woken"
    SANDBOX_WAKE_FAILED = "sandbox.wake_failed"
    SANDBOX_UPDATED = "sandbox.updated"
    SANDBOX_FAILED = "sandbox.failed"
    SANDBOX_EXPIRED = "sandbox.expired"
    SANDBOX_OUT_OF_MEMORY = "sandbox.out_of_memory"
    SANDBOX_EXITED = "sandbox.exited"
    SANDBOX_MEMORY_LOST = "sandbox.memory_lost"
    SANDBOX_RESTARTED = "sandbox.restarted"
    SANDBOX_CRASH_LOOP = "sandbox.crash_loop"
    SANDBOX_ROLLED_BACK = "sandbox.rolled_back"
    SANDBOX_FORKED = "sandbox.forked"
    SANDBOX_PROMOTED = "sandbox.promoted"
    SANDBOX_FILES_RESTORED = "sandbox.files_restored"
    SANDBOX_EXPORTED = "sandbox.exported"
    SANDBOX_IMPORTED = "sandbox.imported"
    SANDBOX_DELETING = "sandbox.deleting"
    SANDBOX_DELETED = "sandbox.deleted"
    SANDBOX_ADOPTED = "sandbox.adopted"
    SNAPSHOT_CREATED = "snapshot.created"
    SNAPSHOT_FAILED = "snapshot.failed"
    SNAPSHOT_LOST = "snapshot.lost"
    SNAPSHOT_DELETED = "snapshot.deleted"
    SNAPSHOT_PRUNED = "snapshot.pruned"
    SNAPSHOT_ARCHIVED = "snapshot.archived"
    SNAPSHOT_WOKEN = "snapshot.woken"
    ARCHIVE_REHEARSED = "archive.rehearsed"
    ARCHIVE_DAMAGED = "archive.damaged"
    TEMPLATE_BUILD_STARTED = "template.build_started"
    TEMPLATE_READY = "template.ready"
    TEMPLATE_FAILED = "template.failed"
    TEMPLATE_DELETED = "template.deleted"
    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"


MEANING: dict[EventKind, str] = {
    EventKind.SANDBOX_CREATED: "Somebody asked for it; its name is taken from here on.",
    EventKind.SANDBOX_STARTING: "A new machine is being made on its disk.",
    EventKind.SANDBOX_STARTED: "It runs, and its agent answers.",
    EventKind.SANDBOX_PAUSING: "A pause has begun.",
    EventKind.SANDBOX_PAUSED: "It is paused; `hold` says where its memory is.",
    EventKind.SANDBOX_PAUSE_FAILED: "The pause did not happen; the reason says why, and it is as it was.",
    EventKind.SANDBOX_RESUMING: "A resume has begun.",
    EventKind.SANDBOX_RESUMED: "It goes on where it was paused.",
    EventKind.SANDBOX_RESUME_FAILED: "The resume did not happen; it stays paused, its memory image untouched.",
    EventKind.SANDBOX_STOPPING: "Its machine is being ended.",
    EventKind.SANDBOX_STOPPED: "Its machine has ended and its disk was kept.",
    EventKind.SANDBOX_ARCHIVING: "It is being moved to the object store.",
    EventKind.SANDBOX_ARCHIVED: "All of it is in the object store, read back, and its local copy is gone.",
    EventKind.SANDBOX_ARCHIVE_FAILED: "The archive did not happen; it is here as it was.",
    EventKind.SANDBOX_WAKING: "It is being brought back from the object store.",
    EventKind.SANDBOX_WOKEN: "It is back from the object store, as it was: paused, or stopped.",
    EventKind.SANDBOX_WAKE_FAILED: "It could not be brought back; it stays archived, and the reason says why.",
    EventKind.SANDBOX_UPDATED: "Labels, limits, lifetime or timeline were changed.",
    EventKind.SANDBOX_FAILED: "An operation failed, or the node lost it; the reason says why.",
    EventKind.SANDBOX_EXPIRED: "Its lifetime ended, and what its persistence says was done.",
    EventKind.SANDBOX_OUT_OF_MEMORY: "Its memory limit was met; the reason names what was killed.",
    EventKind.SANDBOX_EXITED: "Its machine ended by itself, or was gone when the node came back.",
    EventKind.SANDBOX_MEMORY_LOST: "Its machine ended with memory that was to be kept, or with the host; the disk was kept.",
    EventKind.SANDBOX_RESTARTED: "After its machine had ended by itself, it runs again from its disk.",
    EventKind.SANDBOX_CRASH_LOOP: "It failed five times in a row; it is tried again ever more rarely.",
    EventKind.SANDBOX_ROLLED_BACK: "It is back at one of its snapshots; the reason names it.",
    EventKind.SANDBOX_PROMOTED: "The state of `fork` became its own; `snapshot` keeps that moment.",
    EventKind.SANDBOX_FORKED: "Others were made from one of its snapshots; `forks` are their ids.",
    EventKind.SANDBOX_FILES_RESTORED: "A file or folder is as it was at a snapshot; `path` says which.",
    EventKind.SANDBOX_EXPORTED: "All of it was sent as one file to who asked for it; it is as it was.",
    EventKind.SANDBOX_IMPORTED: "It came out of a file: stopped, or paused with its memory.",
    EventKind.SANDBOX_DELETING: "A delete has begun.",
    EventKind.SANDBOX_DELETED: "Nothing of it is left.",
    EventKind.SANDBOX_ADOPTED: "The server took it over from the node, which alone knew it; the reason says from what.",
    EventKind.SNAPSHOT_CREATED: "This moment of a sandbox is kept; `snapshot` is its id.",
    EventKind.SNAPSHOT_FAILED: "A snapshot was not made; the reason says why, and nothing of it is left.",
    EventKind.SNAPSHOT_LOST: "The node has no record of a snapshot; what it held may be in quarantine.",
    EventKind.SNAPSHOT_DELETED: "A snapshot of a sandbox is gone.",
    EventKind.SNAPSHOT_PRUNED: "Snapshots went that the timeline of their sandbox keeps no longer; `snapshots` are their ids.",
    EventKind.SNAPSHOT_ARCHIVED: "All of a snapshot is in the object store, and was read back from there.",
    EventKind.SNAPSHOT_WOKEN: "A snapshot is back from the object store.",
    EventKind.ARCHIVE_REHEARSED: "An archive was restored into a scratch place, and is whole; `snapshot`: of which one.",
    EventKind.ARCHIVE_DAMAGED: "An archive cannot be restored as it was put there; the reason names what is wrong.",
    EventKind.TEMPLATE_BUILD_STARTED: "The build of a template has begun.",
    EventKind.TEMPLATE_READY: "A template can be used.",
    EventKind.TEMPLATE_FAILED: "The build of a template failed; the reason names the step.",
    EventKind.TEMPLATE_DELETED: "A template is gone.",
    EventKind.KEY_CREATED: "An API key was made.",
    EventKind.KEY_REVOKED: "An API key opens nothing any more.",
}
"""What each tells: the reference is made from this."""


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
