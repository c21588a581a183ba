"""A terminal as one ordered stream: a WebSocket in front of the agent's Start (or Connect) and StreamInput."""

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from sandkeep.domain.errors import Conflict, GuestError, InvalidArgument, NotFound, SandkeepError, Unauthenticated
from sandkeep.domain.names import check_env, check_user
from sandkeep.edge.api.services import Services
from sandkeep.edge.gate.problems import problem
from sandkeep.lib.connect import END_FLAG, STREAM_TYPE, Deframer, frame
from sandkeep.lib.together import together

_NOT_FOUND, _NOT_RUNNING, _BROKEN, _BAD = 4404, 4409, 1012, 4400
_MAX_INPUT = 64 << 10
_OFFSET_EVERY = 64 << 10


def terminal_routes(services: Services) -> list[WebSocketRoute]:
    async def terminal(websocket: WebSocket) -> None:
        await _Terminal(services, websocket).serve()

    return [WebSocketRoute("/v1/sandboxes/{ref}/terminal", terminal)]


class _Terminal:
    def __init__(self, services: Services, websocket: WebSocket) -> None:
        self._services = services
        self._websocket = websocket
        self._pid: int | None = None
        self._told = 0

    async def serve(self) -> None:
        websocket = self._websocket
        query = websocket.query_params
        try:
            who = await self._services.identity.principal(websocket)
            wake = query.get("no_resume", "").lower() not in ("1", "true", "yes")
            start = _start_message(websocket)
            headers = _headers(query.get("user"))
            reach, project_id = self._services.reach, who.project_id
            self._reached = await reach.agent(project_id, websocket.path_params["ref"], wake=wake)
        except SandkeepError as error:
            await websocket.accept()
            await websocket.send_text(json.dumps({"error": problem(error)}))
            await websocket.close(_close_code(error))
            return
        await websocket.accept()
        method = "Connect" if "pid" in query else "Start"
        sender, receiver = anyio.create_memory_object_stream[dict[str, Any]](16)
        code = _BROKEN
        try:
            async with reach.attended(project_id, self._reached) as heard, together() as tasks:
                tasks.start_soon(self._client, sender, tasks.cancel_scope)
                code = await self._output(method, start, headers, tasks, receiver, heard)
                tasks.cancel_scope.cancel()
        except WebSocketDisconnect:
            return
        except SandkeepError as failure:
            with suppress(Exception):
                await websocket.send_text(json.dumps({"error": problem(failure)}))
            code = _close_code(failure)
        except OSError:
            pass
        with suppress(Exception):
            await websocket.close(code)

    async def _output(
        self,
        method: str,
        start: dict[str, Any],
        headers: list[tuple[bytes, bytes]],
        tasks: anyio.abc.TaskGroup,
        receiver: MemoryObjectReceiveStream[dict[str, Any]],
        heard: Callable[[], None],
    ) -> int:
        """The agent's events to the client, to the end. Returns the close code."""
        frames = Deframer()
        async with self._services.guest.request(
            self._reached.endpoint, "POST", f"/process.Process/{method}", headers, frame(start)
        ) as answer:
            async for chunk in answer.body:
                heard()
                for flags, message in frames.feed(chunk):
                    if flags & END_FLAG:
                        failure = message.get("error")
                        if failure:
                            raise _guest_error(failure)
                        return 1000
                    event = message.get("event") or {}
                    if "start" in event and self._pid is None:
                        self._pid = int(event["start"].get("pid", 0))
                        tasks.start_soon(self._input, receiver)
                    await self._pass_on(event)
        return _BROKEN

    async def _pass_on(self, event: dict[str, Any]) -> None:
        websocket = self._websocket
        if "start" in event:
            await websocket.send_text(json.dumps({"started": {"pid": self._pid}}))
        elif "data" in event:
            data = event["data"]
            for stream in ("pty", "stdout", "stderr"):
                if data.get(stream):
                    payload = base64.b64decode(data[stream])
                    await websocket.send_bytes(payload)
                    end = int(data.get("offset", 0)) + len(payload)
                    if end - self._told >= _OFFSET_EVERY:
                        self._told = end
                        await websocket.send_text(json.dumps({"offset": end}))
        elif "dropped" in event:
            await websocket.send_text(json.dumps({"dropped": event["dropped"].get("bytes", 0)}))
        elif "end" in event:
            end_event = event["end"]
            signal = end_event.get("signal")
            code = 128 + signal if isinstance(signal, int) else end_event.get("exitCode", -1)
            await websocket.send_text(json.dumps({"exit": {"exit_code": code, "signal": signal}}))

    async def _client(self, sender: MemoryObjectSendStream[dict[str, Any]], scope: anyio.CancelScope) -> None:
        """What the client sends, in its order, to `_input`. A client that goes away detaches; the process lives on."""
        async with sender:
            while True:
                message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    scope.cancel()
                    return
                if message.get("bytes"):
                    data = message["bytes"]
                    for begin in range(0, len(data), _MAX_INPUT):
                        encoded = base64.b64encode(data[begin : begin + _MAX_INPUT]).decode()
                        await sender.send({"data": {"input": {"pty": encoded}}})
                elif message.get("text"):
                    try:
                        control = json.loads(message["text"])
                    except ValueError:
                        continue
                    if isinstance(control, dict):
                        await sender.send({"control": control})

    async def _input(self, receiver: MemoryObjectReceiveStream[dict[str, Any]]) -> None:
        """One client stream to the agent carries all input, so that keys arrive in the order they were pressed."""

        async def messages() -> AsyncIterator[bytes]:
            yield frame({"start": {"process": {"pid": self._pid}}})
            async for item in receiver:
                if "control" in item:
                    await self._control(item["control"])
                else:
                    yield frame(item)
            yield frame({}, END_FLAG)

        stream_type = [(b"content-type", STREAM_TYPE.encode())]
        with suppress(GuestError):  # the process has ended; its end event says so
            async with self._services.guest.request(
                self._reached.endpoint, "POST", "/process.Process/StreamInput", stream_type, messages()
            ) as answer:
                async for _ in answer.body:
                    pass

    async def _control(self, control: dict[str, Any]) -> None:
        process = {"pid": self._pid}
        if isinstance(control.get("resize"), dict):
            size = control["resize"]
            cols, rows = (max(1, min(4096, int(size.get(key, 0) or 0))) for key in ("cols", "rows"))
            await self._unary("Update", {"process": process, "pty": {"size": {"cols": cols, "rows": rows}}})
        elif isinstance(control.get("signal"), str):
            await self._unary("SendSignal", {"process": process, "signal": "SIGNAL_" + control["signal"][:16].upper()})
        elif control.get("eof"):
            await self._unary("SendInput", {"process": process, "input": {"pty": base64.b64encode(b"\x04").decode()}})

    async def _unary(self, method: str, message: dict[str, Any]) -> None:
        with suppress(SandkeepError):
            async with self._services.guest.request(
                self._reached.endpoint,
                "POST",
                f"/process.Process/{method}",
                [(b"content-type", b"application/json")],
                json.dumps(message).encode(),
            ) as answer:
                async for _ in answer.body:
                    pass


def _start_message(websocket: WebSocket) -> dict[str, Any]:
    """Raises InvalidArgument."""
    query = websocket.query_params
    try:
        cols, rows = (max(1, min(4096, int(query.get(key, str(d))))) for key, d in (("cols", 80), ("rows", 24)))
        if "pid" in query:
            return {"process": {"pid": int(query["pid"])}, "offset": int(query.get("offset", "0"))}
    except ValueError as error:
        raise InvalidArgument("cols, rows, pid and offset are numbers") from error
    command = query.getlist("command") or ["/bin/bash", "-i", "-l"]
    env = {"TERM": "xterm-256color", "LANG": "C.UTF-8"}
    for item in query.getlist("env"):
        key, _, value = item.partition("=")
        env[key] = value
    process: dict[str, Any] = {"cmd": command[0], "args": command[1:], "envs": check_env(env)}
    if query.get("cwd"):
        process["cwd"] = query["cwd"]
    return {"process": process, "pty": {"size": {"cols": cols, "rows": rows}}, "offset": 0, "detached": True}


def _headers(user: str | None) -> list[tuple[bytes, bytes]]:
    headers = [(b"content-type", STREAM_TYPE.encode()), (b"keepalive-ping-interval", b"30")]
    if user:
        headers.append((b"authorization", b"Basic " + base64.b64encode(f"{check_user(user)}:".encode())))
    return headers


def _guest_error(failure: Any) -> SandkeepError:
    code = failure.get("code") if isinstance(failure, dict) else None
    message = str(failure.get("message", ""))[:500] if isinstance(failure, dict) else "the agent failed"
    return {"not_found": NotFound, "invalid_argument": InvalidArgument, "unauthenticated": InvalidArgument}.get(
        str(code), GuestError
    )(message)


def _close_code(error: SandkeepError) -> int:
    if isinstance(error, NotFound):
        return _NOT_FOUND
    if isinstance(error, Conflict):
        return _NOT_RUNNING
    if isinstance(error, InvalidArgument):
        return _BAD
    return 4401 if isinstance(error, Unauthenticated) else _BROKEN
