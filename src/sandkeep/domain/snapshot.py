"""A snapshot: a point in time of a sandbox, kept until somebody deletes it or the sandbox."""

from dataclasses import dataclass
from enum import StrEnum

from sandkeep.domain.errors import InvalidArgument
from sandkeep.domain.names import check_name

MOST = 1000
"""Snapshots of one sandbox."""

_MOST_TAGS, _LONGEST_TAG = 32, 64


class SnapshotKind(StrEnum):
    """What it keeps: the disk, or memory and processes, too."""

    DISK = "disk"
    FULL = "full"


class SnapshotPhase(StrEnum):
    MAKING = "making"
    READY = "ready"
    DELETING = "deleting"


class Cause(StrEnum):
    """What it was made for. Only those that nobody asked for go by a timeline's rules."""

    ASKED = "asked"
    SCHEDULE = "schedule"
    FORK = "fork"
    ROLLBACK = "rollback"
    PROMOTE = "promote"
    EXEC = "exec"
    EXIT = "exit"
    OUT_OF_MEMORY = "out_of_memory"
    CRASH = "crash"


@dataclass(frozen=True)
class Snapshot:
    """parent: the snapshot that the disk came from when this one was made; held: seconds that the guest stood still for it;
    created_at: seconds since the epoch; archived: bytes of it in the object store, None: it is on its node."""

    id: str
    project_id: str
    sandbox_id: str
    name: str | None
    kind: SnapshotKind
    tags: tuple[str, ...]
    parent: str | None
    phase: SnapshotPhase
    reason: str
    created_at: float
    held: float = 0.0
    cause: Cause = Cause.ASKED
    archived: int | None = None


def check(name: str | None, tags: tuple[str, ...]) -> None:
    """Raises InvalidArgument."""
    if name is not None:
        check_name(name, "snapshot")
    check_tags(tags)


def check_tags(tags: tuple[str, ...], field: str = "tags") -> None:
    """Raises InvalidArgument."""
    if len(tags) > _MOST_TAGS or any(not 1 <= len(tag) <= _LONGEST_TAG or not tag.isprintable() for tag in tags):
        raise InvalidArgument(
            f"{field} are at most {_MOST_TAGS} words of 1 to {_LONGEST_TAG} printable characters", field=field
        )
