"""A terminal in a sandbox, over one WebSocket: bytes both ways, resizing, and attaching again after a break."""

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from sandkeep.lib.retry import delays
from sandkeep.sdk import errors
from sandkeep.sdk._async.lost import refuse_lost
from sandkeep.sdk._async.transport import AsyncTransport
from sandkeep.sdk._async.websocket import AsyncWebSocket, Closed
from sandkeep.sdk.concurrency import async_sleep
from sandkeep.sdk.results import Dropped, ProcessResult

_INPUT = 1 << 16
# What a close means when no error was said before it.
_CLOSED: dict[int, type[errors.SandkeepError]] = {
    4400: errors.InvalidArgument,
    4401: errors.Unauthenticated,
    4404: errors.NotFound,
    4409: errors.Conflict,
    1001: errors.ConnectionLost,
    1005: errors.ConnectionLost,
    1006: errors.ConnectionLost,
    1011: errors.ConnectionLost,
    1012: errors.ConnectionLost,
}


class AsyncTerminal:
    """Made by `AsyncSandbox.open_terminal`. Iterate it for what the terminal prints; `result` is set at the end.

    One task may iterate while another writes. Input written while the connection is broken raises ConnectionLost.
    """

    def __init__(
        self, transport: AsyncTransport, sandbox_id: str, query: dict[str, Any], *, resume_within: float = 300.0
    ) -> None:
        self._transport = transport
        self._sandbox = f"/v1/sandboxes/{sandbox_id}"
        self._path = f"{self._sandbox}/terminal"
        self._query = query
        self._resume_within = resume_within
        self._socket: AsyncWebSocket | None = None
        self._closed = False
        self._broken_since: float | None = None
        self._waits = delays(first=0.05, cap=2.0)
        self.pid: int = int(query.get("pid", 0))
        self.offset: int = int(query.get("offset", 0))
        self.result: ProcessResult | None = None

    async def connect(self) -> None:
        """Raises what the server says against it: NotFound, Conflict, InvalidArgument."""
        self._socket = await self._open(self._query)

    async def _open(self, query: dict[str, Any]) -> AsyncWebSocket:
        """A socket whose process is known. The server says errors over the open socket, as its first message."""
        socket = await AsyncWebSocket.open(self._transport, self._path, query)
        try:
            message = await socket.receive()
            if isinstance(message, str):
                self._read(message)
            if not self.pid:
                raise errors.GuestError("the terminal did not say which process it is of")
        except Closed as closed:
            raise _CLOSED.get(closed.code, errors.GuestError)(closed.reason or str(closed)) from closed
        except BaseException:
            await socket.aclose()
            raise
        return socket

    async def __aiter__(self) -> AsyncIterator[bytes | Dropped]:
        """What the terminal prints, until its process ends or `aclose()`. Raises StreamLost and ProcessLost."""
        while self.result is None and not self._closed:
            if self._socket is None:
                await self._attach_again()
            if self._socket is None:
                break
            told: Dropped | None = None
            try:
                message = await self._socket.receive()
                if isinstance(message, str):
                    told = self._read(message)
            except Closed as closed:
                await self._drop()
                if closed.code == 1000:
                    raise errors.GuestError("the terminal was closed without saying how its process ended") from closed
                continue
            except (errors.Unavailable, errors.GuestUnreachable, errors.Conflict):
                await self._drop()
                continue
            if isinstance(message, bytes):
                self._heard()
                self.offset += len(message)
                yield message
            elif told is not None:
                yield told
        await self.aclose()

    def _read(self, message: str) -> Dropped | None:
        """A message that is not output. Raises the error that it may be."""
        try:
            told = json.loads(message)
            if "error" in told:
                raise errors.from_problem(told["error"])
            if "started" in told:
                self.pid = int(told["started"]["pid"])
            if "offset" in told:
                self.offset = int(told["offset"])
            if "exit" in told:
                end = told["exit"]
                self.result = ProcessResult(
                    exit_code=int(end["exit_code"]),
                    signal=end.get("signal"),
                    timed_out=bool(end.get("timed_out")),
                    out_of_memory=bool(end.get("out_of_memory")),
                )
            if "dropped" in told:
                count = int(told["dropped"])
                self.offset += count
                return Dropped(count, self.offset)
        except (ValueError, TypeError, KeyError) as error:
            raise errors.GuestError(f"the terminal sent a message that cannot be read: {error}") from error
        return None

    def _heard(self) -> None:
        self._broken_since, self._waits = None, delays(first=0.05, cap=2.0)

    async def _attach_again(self) -> None:
        """At the offset, however often it takes. What opens and says nothing before it breaks again does not count."""
        query = {"pid": self.pid, "offset": self.offset, "no_resume": "true"}
        kept = {name: value for name, value in self._query.items() if name in ("cols", "rows", "user")}
        if self._broken_since is None:
            self._broken_since = time.monotonic()
        cause: errors.SandkeepError | None = None
        while not self._closed:
            wait = next(self._waits)
            if time.monotonic() + wait - self._broken_since > self._resume_within:
                raise errors.StreamLost(
                    f"the terminal could not be attached again in {self._resume_within:g} s",
                    hint=f"attach to process {self.pid} at offset {self.offset} once the sandbox runs",
                    pid=self.pid,
                    offset=self.offset,
                ) from cause
            await async_sleep(wait)
            try:
                self._socket = await self._open(kept | query)
                return
            except errors.NotFound as error:
                raise errors.ProcessLost("the process of the terminal is gone") from error
            except (errors.Conflict, errors.Unavailable, errors.GuestUnreachable) as error:
                if isinstance(error, errors.Conflict):
                    await refuse_lost(self._transport, self._sandbox, error)
                cause = error

    async def write(self, data: bytes) -> None:
        """Keys. Raises ConnectionLost when it is not connected."""
        for at in range(0, len(data), _INPUT):
            await self._send(data[at : at + _INPUT])

    async def resize(self, columns: int, rows: int) -> None:
        self._query = self._query | {"cols": columns, "rows": rows}
        await self._send(json.dumps({"resize": {"cols": columns, "rows": rows}}))

    async def signal(self, name: str) -> None:
        """Like SIGINT."""
        await self._send(json.dumps({"signal": name}))

    async def end_of_input(self) -> None:
        await self._send(json.dumps({"eof": True}))

    async def _send(self, message: bytes | str) -> None:
        if self._socket is None:
            raise errors.ConnectionLost("the terminal is not connected at the moment")
        await self._socket.send(message)

    async def _drop(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.aclose()

    async def aclose(self) -> None:
        """Detach; the process lives on unless the terminal's end stops it."""
        self._closed = True
        await self._drop()

    async def __aenter__(self) -> "AsyncTerminal":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def terminal_query(
    command: Sequence[str] | None,
    *,
    columns: int,
    rows: int,
    user: str | None,
    cwd: str | None,
    env: Mapping[str, str] | None,
    no_resume: bool,
) -> dict[str, Any]:
    query: dict[str, Any] = {"cols": columns, "rows": rows}
    if command:
        query["command"] = list(command)
    if env:
        query["env"] = [f"{name}={value}" for name, value in env.items()]
    if user is not None:
        query["user"] = user
    if cwd is not None:
        query["cwd"] = cwd
    if no_resume:
        query["no_resume"] = "true"
    return query
