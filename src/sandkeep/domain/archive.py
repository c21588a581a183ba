"""What a rehearsal of an archive found, and what is said of a snapshot that is archived."""

from dataclasses import dataclass

from sandkeep.domain.errors import Conflict


@dataclass(frozen=True)
class Rehearsed:
    """intact: all of it was restored, and is what was archived; else `reason` says what is wrong. size: bytes of content;
    seconds: that it took."""

    intact: bool
    reason: str
    size: int
    seconds: float


def snapshot_is_away(sandbox: str, snapshot: str) -> Conflict:
    """For what needs its disk; both as they are called."""
    return Conflict(
        f"the snapshot {snapshot} is archived: it is not here",
        hint=f"bring it back: sandkeep wake {sandbox}@{snapshot}",
    )
