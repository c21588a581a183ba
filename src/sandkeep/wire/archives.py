"""Archives on the wire."""

from sandkeep.wire.shape import Asked, Given, ShortText


class WakeRequest(Asked):
    """`disk_only`: leave its memory in the archive aside; it is then stopped."""

    disk_only: bool = False


class VerifyRequest(Asked):
    """`snapshot`: name or id of the one whose archive it is; without one, that of the sandbox itself."""

    snapshot: ShortText | None = None


class VerifiedView(Given):
    """`intact`: all of the archive was restored, and is what was put there; else `reason` names what is wrong. `size`: bytes of
    content; `seconds`: that it took."""

    intact: bool
    reason: str
    size: int
    seconds: float
