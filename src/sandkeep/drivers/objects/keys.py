"""What a key may look like: nothing that a store or a file system reads as anything else."""

import re

from sandkeep.domain.errors import InvalidArgument

_KEY = re.compile(r"[a-z0-9_][a-z0-9_.-]*(/[a-z0-9_][a-z0-9_.-]*)*")


def is_key(key: str) -> bool:
    return len(key) <= 500 and _KEY.fullmatch(key) is not None


def checked(key: str) -> str:
    """Raises InvalidArgument."""
    if not is_key(key):
        raise InvalidArgument(f"{key[:80]!r} is no key of an object")
    return key
