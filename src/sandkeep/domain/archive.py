"""What a rehearsal of an archive found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rehearsed:
    """intact: all of it was restored, and is what was archived; else `reason` says what is wrong. size: bytes of content;
    seconds: that it took."""

    intact: bool
    reason: str
    size: int
    seconds: float
