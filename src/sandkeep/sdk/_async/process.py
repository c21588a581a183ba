"""A process in a sandbox: output as it comes, input, signals. Its stream outlives broken connections."""

import base64
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from sandkeep.lib.retry import delays
from sandkeep.sdk import errors
from sandkeep.sdk._async.frames import AsyncFrames
from sandkeep.sdk._async.lost import refuse_lost
from sandkeep.sdk._async.transport import AsyncTransport
from sandkeep.sdk.concurrency import AsyncBackground, async_sleep
from sandkeep.sdk.requests import given, pty_size, signal_name
from sandkeep.sdk.results import (
    TIMED_OUT,
    Dropped,
    ExecResult,
    Output,
    ProcessResult,
    StreamName,
    process_result,
)

# One message to the agent is at most 4 MiB; base64 makes 4 bytes of 3.
_INPUT = 1 << 20
_STREAMS: tuple[StreamName, ...] = ("stdout", "stderr", "pty")


class AsyncProcess:
    """Made by `AsyncSandbox.start_process` or `attach`. Iterate it for its output; `wait()` for its end.

    It lives on when its client goes away, through server restarts and through pause and resume. While nobody reads,
    the sandbox keeps the last MiB of output; what was printed beyond that shows as `Dropped`. After it has ended, its
    result can be fetched for 10 minutes. `resume_within`: seconds for which a broken stream is attached again
    (a paused sandbox is waited for, never woken); then StreamLost is raised, with the offset to attach at.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        sandbox_id: str,
        target: dict[str, Any],
        *,
        pty: bool = False,
        stdin: bool = True,
        offset: int = 0,
        user: str | None = None,
        resume_within: float = 300.0,
    ) -> None:
        self._transport = transport
        self._home = f"/v1/sandboxes/{sandbox_id}"
        self._rpc = f"{self._home}/agent/process.Process/"
        self._target = target
        self._query = given(username=user)
        self._frames: AsyncFrames | None = None
        self._detached = False
        self._resume_within = resume_within
        self._pty = pty
        self._stdin = stdin
        self.pid: int = int(target.get("pid", 0))
        self.offset = offset
        self.result: ProcessResult | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid} {self.result or 'running'}>"

    async def start(self, message: dict[str, Any], *, no_resume: bool = False) -> None:
        """Start it and read its pid. A start whose connection broke is looked up by its tag before it is repeated."""
        query = self._query | ({"no_resume": "true"} if no_resume else {})
        for attempt in (1, 2):
            try:
                self._frames = await AsyncFrames.open(self._transport, self._rpc + "Start", message, query)
                await self._read_start()
                return
            except errors.ConnectionFailed:
                raise
            except errors.ConnectionLost:
                try:
                    await self._attach_again(time.monotonic())
                    return
                except errors.ProcessLost:
                    if attempt == 2:
                        raise

    async def connect(self) -> None:
        """Attach to a process that is there, at `offset`. Raises NotFound."""
        self._frames = await self._connect({"no_resume": "true"})

    async def _connect(self, query: dict[str, Any]) -> AsyncFrames:
        message = {"process": self._target, "offset": self.offset}
        self._frames = await AsyncFrames.open(self._transport, self._rpc + "Connect", message, self._query | query)
        await self._read_start()
        return self._frames

    async def _read_start(self) -> None:
        assert self._frames is not None
        message = await self._frames.receive()
        start = _event(message).get("start")
        if not isinstance(start, dict) or not isinstance(start.get("pid"), int):
            raise errors.GuestError("the agent did not say which process it started")
        self.pid = start["pid"]

    async def __aiter__(self) -> AsyncIterator[Output | Dropped]:
        """Output in order, until the process ends or `detach()` is called. May be left and taken up again."""
        while self.result is None and not self._detached:
            if self._frames is None:
                await self._attach_again(time.monotonic())
            if self._frames is None:
                break  # detached meanwhile
            try:
                message = await self._frames.receive()
            except (errors.ConnectionLost, errors.GuestUnreachable):
                await self._close()
                continue
            except errors.DeadlineExceeded:
                self.result = TIMED_OUT
                break
            if message is None:
                raise errors.GuestError("the agent ended the stream without saying how the process ended")
            try:
                found = self._read(_event(message))
            except (KeyError, TypeError, ValueError) as error:
                raise errors.GuestError(f"the agent sent an event that cannot be read: {error}") from error
            for output in found:
                yield output
        await self._close()

    def _read(self, event: Mapping[str, Any]) -> list[Output | Dropped]:
        """What one event says. Sets `offset` and `result`."""
        found: list[Output | Dropped] = []
        if "end" in event:
            self.result = process_result(event["end"])
        if "dropped" in event:
            self.offset = int(event["dropped"]["offset"])
            found.append(Dropped(int(event["dropped"]["bytes"]), self.offset))
        data = event.get("data", {})
        for stream in _STREAMS:
            if stream in data:
                chunk = base64.b64decode(data[stream])
                at = int(data.get("offset", self.offset))
                self.offset = at + len(chunk)
                found.append(Output(stream, chunk, at))
        return found

    async def _attach_again(self, since: float) -> None:
        """Attach at the offset, however often it takes until the deadline. Raises ProcessLost and StreamLost."""
        for wait in delays(first=0.05, cap=2.0):
            try:
                await self._connect({"no_resume": "true"})
                return
            except errors.NotFound as error:
                lost = errors.ProcessLost(
                    "the process is gone: it did not survive a stop, or it ended too long ago",
                    hint="look at the sandbox's events",
                )
                raise lost from error
            except errors.Conflict as error:
                await refuse_lost(self._transport, self._home, error)
                cause: errors.SandkeepError = error
            except (errors.Unavailable, errors.GuestUnreachable) as error:
                cause = error
            await self._close()
            if time.monotonic() + wait - since > self._resume_within:
                raise errors.StreamLost(
                    f"the output of process {self.pid} could not be attached again in {self._resume_within:g} s",
                    hint=f"attach again at offset {self.offset} once the sandbox runs",
                    pid=self.pid,
                    offset=self.offset,
                ) from cause
            await async_sleep(wait)

    async def _close(self) -> None:
        frames, self._frames = self._frames, None
        if frames is not None:
            await frames.aclose()

    @property
    async def stdout(self) -> AsyncIterator[bytes]:
        """What it prints to standard output (or its terminal). What it prints to standard error meanwhile is passed
        over; iterate the process itself for both."""
        async for event in self:
            if isinstance(event, Output) and event.stream != "stderr":
                yield event.data

    @property
    async def stderr(self) -> AsyncIterator[bytes]:
        """What it prints to standard error; standard output is passed over."""
        async for event in self:
            if isinstance(event, Output) and event.stream == "stderr":
                yield event.data

    async def wait(self) -> ProcessResult:
        """Until it ends; output that was not read is passed over. Raises ProcessLost and StreamLost."""
        async for _ in self:
            pass
        if self.result is None:
            raise errors.Conflict("this object was detached from its process", hint="attach(pid) gives a new one")
        return self.result

    async def communicate(self, stdin: bytes | str | None = None) -> ExecResult:
        """Write `stdin`, close it, collect all output in memory, wait for the end. A process whose input cannot be
        written is killed."""
        failures: list[errors.SandkeepError] = []

        async def feed() -> None:
            # Beside the reading: a process that prints while it reads would wait for us, and we for it.
            try:
                if stdin is not None:
                    await self.write(stdin)
                if self._stdin and not self._pty:
                    await self.close_stdin()
            except (errors.NotFound, errors.Conflict):
                return  # it has ended, or closed its input
            except errors.SandkeepError as error:
                failures.append(error)
                await self._end_quietly()

        kept: dict[str, list[bytes]] = {"stdout": [], "stderr": [], "pty": []}
        truncated = False
        started = time.monotonic()
        async with AsyncBackground(feed):
            async for event in self:
                if isinstance(event, Output):
                    kept[event.stream].append(event.data)
                else:
                    truncated = True
        if failures:
            raise failures[0]
        result = await self.wait()
        return ExecResult(
            exit_code=result.exit_code,
            signal=result.signal,
            timed_out=result.timed_out,
            out_of_memory=result.out_of_memory,
            stdout_bytes=b"".join(kept["stdout"] or kept["pty"]),
            stderr_bytes=b"".join(kept["stderr"]),
            truncated=truncated,
            duration=time.monotonic() - started,
            pid=self.pid,
        )

    async def write(self, data: bytes | str) -> None:
        """To its standard input or terminal, in order. Raises NotFound when it has ended."""
        block = data.encode() if isinstance(data, str) else data
        kind = "pty" if self._pty else "stdin"
        for at in range(0, len(block), _INPUT):
            text = base64.b64encode(block[at : at + _INPUT]).decode()
            await self._call("SendInput", {"process": self._target, "input": {kind: text}})

    async def close_stdin(self) -> None:
        """The end of its input; a process with a terminal is sent ctrl-d instead."""
        if self._pty:
            await self.write(b"\x04")
        else:
            await self._call("CloseStdin", {"process": self._target})

    async def signal(self, signal: int | str, *, group: bool = False) -> None:
        """To the process alone, or with `group` to its process group: 15, "SIGTERM" or "TERM"."""
        message = {"process": self._target, "signal": signal_name(signal)} | ({"group": True} if group else {})
        await self._call("SendSignal", message)

    async def kill(self) -> None:
        """SIGKILL to it and everything that descends from it. No error when it has ended."""
        try:
            await self._call("SendSignal", {"process": self._target, "signal": "SIGNAL_SIGKILL", "tree": True})
        except errors.NotFound:
            return

    async def _end_quietly(self) -> None:
        try:
            await self.kill()
        except errors.SandkeepError:
            return

    async def resize(self, columns: int, rows: int) -> None:
        """The size of its terminal."""
        await self._call("Update", {"process": self._target, "pty": pty_size(columns, rows)})

    async def detach(self) -> None:
        """Stop reading; the process lives on. `attach(pid, offset=)` reads on."""
        self._detached = True
        await self._close()

    async def __aenter__(self) -> "AsyncProcess":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.detach()

    async def _call(self, method: str, message: dict[str, Any]) -> None:
        await self._transport.call("POST", self._rpc + method, body=message, query=self._query)


def _event(message: dict[str, Any] | None) -> Mapping[str, Any]:
    event = (message or {}).get("event")
    return event if isinstance(event, dict) else {}
