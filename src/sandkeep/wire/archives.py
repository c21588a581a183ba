"""Archives on the wire."""

from sandkeep.wire.shape import Asked


class WakeRequest(Asked):
    """`disk_only`: leave its memory in the archive aside; it is then stopped."""

    disk_only: bool = False
