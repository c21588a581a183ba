"""Fulfils contracts.guest over direct TCP to the sandbox's address on the host's side (endpoint kind `tcp`)."""

import base64
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
from anyio.abc import ByteStream

from sandkeep.contracts.guest import (
    AGENT_PROTOCOLS,
    ExecRequest,
    ExecResult,
    GuestInit,
    GuestResume,
    HttpAnswer,
    Resumed,
    Unsavable,
)
from sandkeep.domain.errors import (
    DeadlineExceeded,
    GuestError,
    GuestUnreachable,
    InvalidArgument,
    NotFound,
    QuotaExceeded,
    SandkeepError,
)
from sandkeep.domain.node import Endpoint
from sandkeep.drivers.guest.http import Connection, Headers
from sandkeep.wire.agent_hints import hint_for

_CONNECT_TIMEOUT = 5.0
_CALL_TIMEOUT = 10.0
_HOOKS = 15.0
"""Seconds for new host keys and the sandbox's own hooks, which have deadlines inside."""
_MAX_IDLE = 8
_MAX_JSON = 16 << 20
_MAX_SKEW = 0.5
_CLOCK_TRIES = 2
"""The host's own clock may be set between question and answer."""
_PROTOCOL_HEADER = b"sandkeep-agent-protocol"

_ERRORS: dict[str, type[SandkeepError]] = {
    "invalid_argument": InvalidArgument,
    "failed_precondition": InvalidArgument,
    "unauthenticated": InvalidArgument,
    "not_found": NotFound,
    "resource_exhausted": QuotaExceeded,
    "deadline_exceeded": DeadlineExceeded,
}


@dataclass
class _Pool:
    idle: list[Connection] = field(default_factory=list)
    busy: set[Connection] = field(default_factory=set)


class AgentGuest:
    """The agent's HTTP interface (agent/PROTOCOL.md). One instance serves all sandboxes of a process."""

    def __init__(self) -> None:
        self._pools: defaultdict[str, _Pool] = defaultdict(_Pool)

    async def dial(self, endpoint: Endpoint, port: int | None = None) -> ByteStream:
        if endpoint.kind != "tcp":
            raise GuestUnreachable(f"endpoints of kind {endpoint.kind} are not known here")
        try:
            with anyio.fail_after(_CONNECT_TIMEOUT):
                return await anyio.connect_tcp(endpoint.address, port or endpoint.port)
        except TimeoutError as error:
            raise GuestUnreachable(f"the agent at {endpoint.address} does not answer", silent=True) from error
        except OSError as error:
            raise GuestUnreachable(f"the agent at {endpoint.address} does not answer: {error}") from error

    async def hang_up(self, sandbox_address: str) -> None:
        pool = self._pools.pop(sandbox_address, None)
        if pool:
            for connection in [*pool.idle, *pool.busy]:
                await connection.close()

    @asynccontextmanager
    async def request(
        self,
        endpoint: Endpoint,
        method: str,
        target: str,
        headers: Headers,
        body: AsyncIterator[bytes] | bytes | None,
    ) -> AsyncIterator[HttpAnswer]:
        pool = self._pools[endpoint.address]
        signed = [*headers, (b"x-access-token", endpoint.credential.encode())]
        while True:
            connection = pool.idle.pop() if pool.idle else None
            reused = connection is not None
            if connection is None:
                connection = Connection(await self.dial(endpoint), f"{endpoint.address}:{endpoint.port}")
            pool.busy.add(connection)
            try:
                try:
                    response = await connection.exchange(method, target, signed, body)
                except GuestUnreachable as error:
                    # A kept connection may have died unnoticed; before any answer began a whole body can be sent again.
                    if reused and (body is None or isinstance(body, bytes)) and not error.details.get("began"):
                        continue
                    raise
                _check_protocol(response.headers)
                yield HttpAnswer(response.status, response.headers, response.body())
                return
            finally:
                pool.busy.discard(connection)
                current = self._pools.get(endpoint.address) is pool
                if connection.reusable and connection.served and current and len(pool.idle) < _MAX_IDLE:
                    pool.idle.append(connection)
                else:
                    await connection.close()

    async def _call(
        self,
        endpoint: Endpoint,
        method: str,
        target: str,
        message: Any = None,
        *,
        timeout: float | None = _CALL_TIMEOUT,
        headers: Headers | None = None,
        limit: int = _MAX_JSON,
    ) -> dict[str, Any]:
        """A JSON call. Raises GuestUnreachable at the deadline, GuestError for nonsense, the error it answered."""
        body = None if message is None else json.dumps(message).encode()
        asked: Headers = [(b"accept", b"application/json"), (b"content-type", b"application/json"), *(headers or [])]
        try:
            with anyio.fail_after(timeout):
                async with self.request(endpoint, method, target, asked, body) as answer:
                    data = bytearray()
                    async for chunk in answer.body:
                        data += chunk
                        if len(data) > limit:
                            raise GuestError(f"the agent's answer is above {limit} bytes")
        except TimeoutError as error:
            raise GuestUnreachable(f"the agent did not answer {target.split('?')[0]} within {timeout:g} s") from error
        parsed: Any = {}
        if data:
            try:
                parsed = json.loads(data)
                if b"\\ud" in data.lower():  # half of a surrogate pair fits into no database
                    parsed = json.loads(json.dumps(parsed, ensure_ascii=False).encode("utf-8", "replace"))
            except (ValueError, RecursionError) as error:
                raise GuestError("the agent's answer is not JSON") from error
        if not isinstance(parsed, dict):
            raise GuestError("the agent's answer is not an object")
        if answer.status >= 300:
            message_text = str(parsed.get("message", f"status {answer.status}"))[:2000]
            raise _ERRORS.get(str(parsed.get("code")), GuestError)(
                message_text, hint=hint_for(message_text), agent_code=str(parsed.get("code"))[:40]
            )
        return parsed

    async def wait_ready(self, endpoint: Endpoint, deadline: float) -> None:
        wait, patience, last = 0.002, 0.3, "it did not answer"
        with anyio.move_on_after(deadline):
            while True:
                # A boot is 20 to 150 ms and the first packets may be lost: short tries, each with its own connection,
                # longer ones when the host is so busy that nothing answers in time.
                try:
                    with anyio.fail_after(patience):
                        async with self.request(endpoint, "GET", "/health", [], None) as answer:
                            async for _ in answer.body:
                                pass
                    if answer.status < 300:
                        return
                    last = f"status {answer.status}"
                except (GuestError, TimeoutError) as error:
                    if isinstance(error, GuestError) and "protocol" in error.details:
                        raise
                    last = str(error) or "timeout"
                await anyio.sleep(wait)
                wait, patience = min(wait * 1.3, 0.05), min(patience * 1.1, 3.0)
        raise GuestUnreachable(f"the agent was not ready within {deadline:g} s: {last}")

    async def init(self, endpoint: Endpoint, values: GuestInit) -> None:
        await self._call(
            endpoint,
            "POST",
            "/init",
            {
                "accessToken": endpoint.credential,
                "envVars": {**values.env, "SANDKEEP_SANDBOX_ID": values.sandbox_id},
                "timestamp": values.timestamp,
                "hostname": values.hostname,
                "sandboxId": values.sandbox_id,
                "dns": list(values.dns),
                "caBundle": values.ca_bundle,
                "memoryLimitBytes": values.memory_limit,
                "oomGuard": values.oom_guard,
                "newIdentity": values.new_identity,
                "identity": _encoded(values.identity),
                "generation": values.generation,
            },
            timeout=_HOOKS + _CALL_TIMEOUT if values.new_identity else _CALL_TIMEOUT,
        )

    async def quiesce(self, endpoint: Endpoint, deadline: float, event: str = "") -> tuple[Unsavable, ...]:
        answer = await self._quiesce(endpoint, deadline, event)
        found = answer.get("unsavable") or []
        if not isinstance(found, list):
            raise GuestError("the agent's list of unsavable files is not a list")
        return tuple(
            Unsavable(_integer(item.get("pid")), str(item.get("process", ""))[:64], str(item.get("path", ""))[:512])
            for item in found[:100]
            if isinstance(item, dict)
        )

    async def flush(self, endpoint: Endpoint, deadline: float, event: str = "") -> None:
        await self._quiesce(endpoint, deadline, event, diskOnly=True)

    async def _quiesce(self, endpoint: Endpoint, deadline: float, event: str, **more: bool) -> dict[str, Any]:
        asked = {"deadlineMs": int(deadline * 1000), "event": event, **more}
        return await self._call(endpoint, "POST", "/quiesce", asked, timeout=deadline + 2, limit=1 << 20)

    async def thawed(self, endpoint: Endpoint, deadline: float, event: str) -> None:
        asked = {"deadlineMs": int(deadline * 1000), "event": event}
        await self._call(endpoint, "POST", "/thaw", asked, timeout=deadline + 2)

    async def resumed(self, endpoint: Endpoint, values: GuestResume, now: Callable[[], float]) -> Resumed:
        steps: dict[str, Any] = {"hostname": values.hostname, "generation": values.generation, "event": values.event}
        if values.become:
            steps["become"] = {
                "sandboxId": values.become.sandbox_id,
                "accessToken": values.become.credential,
                "envVars": dict(values.become.env),
                "identity": _encoded(values.become.identity),
            }
        for _ in range(_CLOCK_TRIES):
            asked, began = now(), time.monotonic()
            steps["timestamp"] = asked
            answer = await self._call(endpoint, "POST", "/resume", steps, timeout=_HOOKS + _CALL_TIMEOUT)
            if values.become:
                if answer.get("sandboxId") != values.become.sandbox_id:
                    raise GuestError(
                        "the agent in this memory cannot take another identity", hint="fork its disk alone"
                    )
                endpoint = replace(endpoint, credential=values.become.credential)
                steps.pop("become", None)  # the first try did it
            steps["event"] = ""  # its hooks have run
            behind = answer.get("skewSeconds", 0.0)
            if not isinstance(behind, int | float):
                raise GuestError("the agent's skew is not a number")
            took = time.monotonic() - began
            if -_MAX_SKEW - took <= behind <= _MAX_SKEW:
                return Resumed(float(behind), str(answer.get("draw", ""))[:64])
        raise GuestError(f"the clock inside is {behind} s behind after the resume")

    async def environment(self, endpoint: Endpoint) -> dict[str, str]:
        answer = await self._call(endpoint, "GET", "/envs")
        return {name: value for name, value in answer.items() if isinstance(value, str)}

    async def exec(self, endpoint: Endpoint, request: ExecRequest) -> ExecResult:
        message: dict[str, Any] = {
            "cmd": request.argv[0],
            "args": list(request.argv[1:]),
            "envs": dict(request.env),
            "maxOutputBytes": request.max_output,
        }
        if request.user:
            message["user"] = request.user
        if request.cwd:
            message["cwd"] = request.cwd
        if request.stdin:
            message["stdin"] = base64.b64encode(request.stdin).decode()
        if request.timeout:
            message["timeoutMs"] = max(1, int(request.timeout * 1000))
        answer = await self._call(
            endpoint,
            "POST",
            "/exec",
            message,
            timeout=request.timeout + 15 if request.timeout else None,
            limit=3 * request.max_output + (1 << 20),
        )
        signal = answer.get("signal")
        signal = signal if isinstance(signal, int) and 0 < signal < 128 else None
        code = _integer(answer.get("exitCode"))
        return ExecResult(
            pid=_integer(answer.get("pid")),
            exit_code=128 + signal if signal else (137 if code < 0 else code & 0xFF),
            signal=signal,
            stdout=_bytes(answer.get("stdout")),
            stderr=_bytes(answer.get("stderr")),
            truncated=bool(answer.get("truncated")),
            timed_out=bool(answer.get("timedOut")),
            out_of_memory=bool(answer.get("oomKilled")),
            duration=_seconds(answer.get("durationMs")),
        )

    async def events(self, endpoint: Endpoint, after: int) -> list[dict[str, Any]]:
        answer = await self._call(endpoint, "GET", f"/events?after={int(after)}", timeout=2.0, limit=256 << 10)
        found = answer.get("events") or []
        return [item for item in found[:100] if isinstance(item, dict)] if isinstance(found, list) else []


def _encoded(files: Mapping[str, bytes] | None) -> dict[str, str] | None:
    return None if files is None else {name: base64.b64encode(content).decode() for name, content in files.items()}


def _check_protocol(headers: Headers) -> None:
    said = next((value for name, value in headers if name.lower() == _PROTOCOL_HEADER), b"1")
    if not (said.isdigit() and len(said) < 6 and int(said) in AGENT_PROTOCOLS):
        told = said[:6].decode("ascii", "replace")
        raise GuestError(
            f"the agent inside speaks version {told} of its protocol, which this version of Sandkeep does not",
            hint="it runs on; stop it and start it, and it has the agent of this version",
            protocol=told,
        )


def _integer(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _seconds(milliseconds: Any) -> float:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) and 0 <= milliseconds < 1 << 53 else 0.0


def _bytes(value: Any) -> bytes:
    if not value:
        return b""
    with suppress(ValueError, TypeError):
        return base64.b64decode(value, validate=True)
    raise GuestError("the agent's output is not base64")
