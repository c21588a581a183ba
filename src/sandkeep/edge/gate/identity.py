"""Who is it, and not too often: the bearer key of a request or WebSocket handshake."""

import ipaddress
import time
from collections.abc import Callable
from math import ceil

from starlette.requests import HTTPConnection

from sandkeep.control.allowance import Allowance
from sandkeep.control.keys import Keys
from sandkeep.domain.errors import QuotaExceeded, Unauthenticated
from sandkeep.domain.principal import Principal
from sandkeep.lib.buckets import Buckets

_SMALLEST_BURST = 20
_BURST = 5.0
"""Seconds' worth of requests that a key may send at once after it was quiet."""
_MINUTE = 60.0


class Identity:
    def __init__(
        self, keys: Keys, allowance: Allowance | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._keys = keys
        self._allowance = allowance = allowance or Allowance()
        self._now = now
        rate, strangers = allowance.requests, allowance.strangers
        self._requests = Buckets(rate, max(_SMALLEST_BURST, rate * _BURST)) if rate else None
        self._strangers = Buckets(strangers / _MINUTE, strangers) if strangers else None

    async def principal(self, connection: HTTPConnection) -> Principal:
        """Raises Unauthenticated, QuotaExceeded."""
        scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Unauthenticated(
                "this needs an API key",
                hint="send Authorization: Bearer sk_...; `sandkeep up` writes yours into the CLI's file",
            )
        secret = secret.strip()
        found = self._keys.remembered(secret) or await self._first_seen(secret, connection)
        if self._requests and (wait := self._requests.take(found.key_id, self._now())):
            raise QuotaExceeded(
                f"this key may make {self._allowance.requests:g} requests per second",
                hint="send fewer, or raise max_requests in the settings",
                retry_after=ceil(wait),
                limit=self._allowance.requests,
            )
        return found

    async def _first_seen(self, secret: str, connection: HTTPConnection) -> Principal:
        """A key that this server does not know. Who guesses is not listened to for a while; the keys that there are, and one
        that is wrong over and over, are not affected, for these are remembered."""
        if self._strangers is None or self._keys.granted(secret):
            return await self._keys.prove(secret)
        source = _source(connection)
        if wait := self._strangers.wait(source, self._now()):
            raise QuotaExceeded(
                "too many unknown keys came from this address",
                hint="wait, then try again with the right one",
                retry_after=ceil(wait),
                limit=self._allowance.strangers,
            )
        try:
            return await self._keys.prove(secret)
        except Unauthenticated:
            self._strangers.take(source, self._now())
            raise


def _source(connection: HTTPConnection) -> str:
    """The peer's address; of IPv6 its network of 64 bits, since one host has all of these."""
    host = connection.client.host if connection.client else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address.packed, 64), strict=False))
