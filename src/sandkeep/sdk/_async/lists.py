"""Lists in pages, and feeds that go on where they broke."""

import json
import time
from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any

from sandkeep.lib.retry import delays
from sandkeep.sdk import errors
from sandkeep.sdk._async.transport import AsyncTransport, Query, lost
from sandkeep.sdk.concurrency import async_sleep

_PAGE = 200
# The server writes a blank line now and then; this much silence means that the connection is dead.
_SILENCE = 90.0
_PATIENCE = 300.0


async def pages(transport: AsyncTransport, path: str, query: Query | None = None) -> AsyncIterator[dict[str, Any]]:
    """Every item of a list, fetched page by page as they are asked for."""
    cursor: str | None = None
    while True:
        asked: dict[str, Any] = {"limit": _PAGE, **(query or {})}
        if cursor is not None:
            asked["cursor"] = cursor
        page = await transport.call("GET", path, query=asked, again=True)
        for item in page["items"]:
            yield item
        cursor = page.get("next_cursor")
        if not cursor:
            return


async def feed(transport: AsyncTransport, path: str, after: int | None, follow: bool) -> AsyncIterator[dict[str, Any]]:
    """Events after the given seq. With `follow` it never ends: a broken connection is made anew for up to 5 minutes,
    and no event is lost or told twice. A first connection that cannot be made fails as any other call does."""
    if not follow:
        while True:
            query = {"limit": _PAGE} if after is None else {"limit": _PAGE, "after": after}
            page = await transport.call("GET", path, query=query, again=True)
            for item in page["items"]:
                after = int(item["seq"])
                yield item
            if not page.get("next_cursor") or not page["items"]:
                return
    waits = delays(first=0.1, cap=5.0)
    broken_since: float | None = None
    connected = False
    while True:
        try:
            async for line in lines(transport, path, {"follow": "true"} | ({} if after is None else {"after": after})):
                connected, broken_since, waits = True, None, delays(first=0.1, cap=5.0)
                if line.strip():
                    item = json.loads(line)
                    after = int(item["seq"])
                    yield item
        except errors.Unavailable:
            broken_since = broken_since or time.monotonic()
            if not connected or time.monotonic() - broken_since > _PATIENCE:
                raise
        await async_sleep(next(waits))


async def lines(transport: AsyncTransport, path: str, query: Query) -> AsyncIterator[bytes]:
    """The lines of a text that comes as it is made, without their ends. Raises ConnectionLost when it breaks."""
    httpx = import_module("httpx2")
    response = await transport.open("GET", path, query=query, again=True, timeout=_SILENCE)
    waiting = b""
    try:
        async for chunk in response.aiter_raw():
            *whole, waiting = (waiting + chunk).split(b"\n")
            for line in whole:
                yield line
        if waiting:
            yield waiting
    except httpx.TransportError as failure:
        raise lost(transport.address.url, failure) from failure
    finally:
        await response.aclose()
