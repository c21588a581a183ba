"""Who is it, and not too often: the bearer key of a request or WebSocket handshake."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from starlette.requests import HTTPConnection

from sandkeep.control.keys import Keys
from sandkeep.domain.errors import QuotaExceeded, Unauthenticated
from sandkeep.domain.principal import Principal

_SMALLEST_BURST = 20
_BURST = 5.0
"""Seconds' worth of requests that a key may send at once after it was quiet."""


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class Identity:
    """`rate`: requests per second that each key may make; 0: as many as it likes."""

    def __init__(self, keys: Keys, rate: float = 0.0, now: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._rate = rate
        self._burst = max(_SMALLEST_BURST, rate * _BURST)
        self._now = now
        self._buckets: dict[str, _Bucket] = {}

    async def principal(self, connection: HTTPConnection) -> Principal:
        """Raises Unauthenticated, QuotaExceeded."""
        scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Unauthenticated(
                "this needs an API key",
                hint="send Authorization: Bearer sk_...; `sandkeep up` writes yours into the CLI's file",
            )
        found = await self._keys.prove(secret.strip())
        if self._rate:
            self._take(found.key_id)
        return found

    def _take(self, key_id: str) -> None:
        now = self._now()
        bucket = self._buckets.setdefault(key_id, _Bucket(self._burst, now))
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.filled_at) * self._rate)
        bucket.filled_at = now
        if bucket.tokens < 1:
            raise QuotaExceeded(
                f"this key may make {self._rate:g} requests per second",
                hint="send fewer, or raise max_requests in the settings",
                retry_after=ceil((1 - bucket.tokens) / self._rate),
                limit=self._rate,
            )
        bucket.tokens -= 1
