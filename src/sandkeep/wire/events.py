"""Events on the wire."""

from datetime import datetime
from typing import Any

from sandkeep.wire.shape import Given


class EventView(Given):
    """`seq` orders all events; pass the last one seen as `after`."""

    seq: int
    at: datetime
    kind: str
    subject: str
    reason: str
    data: dict[str, Any]
