"""Passes a request through to the agent of a sandbox, streaming both ways; wakes the sandbox when it sleeps.

Bare ASGI, no framework on the byte path. The caller's key never goes in; only listed headers do. What comes back is a
stranger's: it is sent as a download that no browser runs.
"""

import base64
from collections.abc import AsyncIterator, Callable
from urllib.parse import parse_qsl, urlencode

import anyio
from starlette.types import Message, Receive, Scope, Send

from sandkeep.contracts.guest import Guest
from sandkeep.control.endpoints import Reached
from sandkeep.control.reach import Reach
from sandkeep.domain.errors import GuestUnreachable
from sandkeep.domain.names import check_user
from sandkeep.lib.together import together

_FORWARDED = frozenset(
    b"content-type content-length content-encoding accept accept-encoding range if-range if-match if-none-match "
    b"if-modified-since if-unmodified-since connect-protocol-version connect-timeout-ms keepalive-ping-interval".split()
)
_RETURNED = frozenset(
    b"content-type content-length content-encoding content-range content-disposition accept-ranges last-modified etag "
    b"vary x-tree-files x-tree-skipped x-tree-complete".split()
)
GUARDS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'"),
]


async def pass_through(
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    reach: Reach,
    guest: Guest,
    project_id: str,
    reference: str,
    path: str,
) -> None:
    """`path`: where at the agent. Raises SandkeepError as long as nothing was sent."""
    asked = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
    wake = dict(asked).get("no_resume", "").lower() not in ("1", "true", "yes")
    query = [(name, value) for name, value in asked if name != "no_resume"]
    headers = [
        (name, value) for name, value in scope["headers"] if name in _FORWARDED or name.startswith(b"x-metadata-")
    ]
    if path.startswith("/process.Process/") or path.startswith("/filesystem.Filesystem/"):
        user = dict(query).get("username", "")
        query = [(name, value) for name, value in query if name != "username"]
        if user:
            basic = base64.b64encode(f"{check_user(user)}:".encode())
            headers.append((b"authorization", b"Basic " + basic))
    target = f"{path}?{urlencode(query)}" if query else path
    names = {name for name, _ in scope["headers"]}
    has_body = b"content-length" in names or b"transfer-encoding" in names
    reached = await reach.agent(project_id, reference, wake=wake)

    async def relay() -> None:
        answered = False

        async def answer(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            async with reach.attended(project_id, reached) as heard:
                await _relay(scope, receive, answer, guest, reached, target, headers, has_body, heard)
        except GuestUnreachable as error:
            error.details["answered"] = answered
            raise

    try:
        await relay()
    except GuestUnreachable as error:
        await reach.lost(reached)
        if has_body or error.details["answered"] or error.details.get("hangs"):
            raise
        reached = await reach.agent(project_id, reference, wake=wake)
        await relay()


async def _relay(
    scope: Scope,
    receive: Receive,
    send: Send,
    guest: Guest,
    reached: Reached,
    target: str,
    headers: list[tuple[bytes, bytes]],
    has_body: bool,
    heard: Callable[[], None],
) -> None:
    consumed = anyio.Event()

    async def body() -> AsyncIterator[bytes]:
        while True:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                raise GuestUnreachable("the client went away in the middle of its request")
            if message.get("body"):
                heard()  # it took the piece before
                yield message["body"]
            if not message.get("more_body"):
                consumed.set()
                return

    if not has_body:
        consumed.set()
    async with together() as tasks:

        async def watch_client() -> None:
            await consumed.wait()
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch_client)
        try:
            async with guest.request(
                reached.endpoint, scope["method"], target, headers, body() if has_body else None
            ) as answer:
                kept = [(name.lower(), value) for name, value in answer.headers if name.lower() in _RETURNED]
                await send({"type": "http.response.start", "status": answer.status, "headers": kept + GUARDS})
                async for chunk in answer.body:
                    heard()
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            tasks.cancel_scope.cancel()
