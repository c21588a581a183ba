"""Cursors: where the next page begins, opaque to clients."""

import base64
import json
import math

from sandkeep.domain.errors import InvalidArgument


def encode(at: float, identifier: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([at, identifier]).encode()).decode().rstrip("=")


def decode(cursor: str | None) -> tuple[float, str] | None:
    """Raises InvalidArgument."""
    if not cursor:
        return None
    try:
        at, identifier = json.loads(base64.urlsafe_b64decode(cursor[:200] + "=" * (-len(cursor) % 4)))
        moment = float(at)
        if not math.isfinite(moment) or not isinstance(identifier, str) or not identifier.isascii():
            raise ValueError("not a moment and an id")
        return moment, identifier
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidArgument(
            "the cursor is not one of ours", hint="begin again without one", field="cursor"
        ) from error
