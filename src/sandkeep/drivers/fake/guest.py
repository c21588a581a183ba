"""A guest without an agent: answers for machines that the fake runtimes have, interprets a handful of commands."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import ByteStream

from sandkeep.contracts.guest import ExecRequest, ExecResult, GuestInit, GuestResume, HttpAnswer, Resumed, Unsavable
from sandkeep.domain.errors import GuestUnreachable, InvalidArgument
from sandkeep.domain.node import Endpoint

Alive = Callable[[str], bool]


class FakeGuest:
    """alive: whether a machine that is not frozen has this address. `unsavable` is what the next quiesce reports."""

    def __init__(self, alive: Alive) -> None:
        self._alive = alive
        self.inits: list[GuestInit] = []
        self.resumes: list[GuestResume] = []
        self.hung_up: list[str] = []
        self._env: dict[str, dict[str, str]] = {}
        self.unsavable: tuple[Unsavable, ...] = ()

    def _reach(self, endpoint: Endpoint) -> None:
        if not self._alive(endpoint.address):
            raise GuestUnreachable(f"the agent at {endpoint.address} does not answer: no machine")

    async def dial(self, endpoint: Endpoint, port: int | None = None) -> ByteStream:
        self._reach(endpoint)
        raise GuestUnreachable("a fake guest has no ports")

    async def wait_ready(self, endpoint: Endpoint, deadline: float) -> None:
        self._reach(endpoint)

    async def init(self, endpoint: Endpoint, values: GuestInit) -> None:
        self._reach(endpoint)
        self.inits.append(values)
        self._env[endpoint.credential] = {**values.env, "SANDKEEP_SANDBOX_ID": values.sandbox_id}

    async def quiesce(self, endpoint: Endpoint, deadline: float, event: str = "") -> tuple[Unsavable, ...]:
        self._reach(endpoint)
        found, self.unsavable = self.unsavable, ()
        return found

    async def flush(self, endpoint: Endpoint, deadline: float, event: str = "") -> None:
        self._reach(endpoint)

    async def thawed(self, endpoint: Endpoint, deadline: float, event: str) -> None:
        self._reach(endpoint)

    async def resumed(self, endpoint: Endpoint, values: GuestResume, now: Callable[[], float]) -> Resumed:
        self._reach(endpoint)
        self.resumes.append(values)
        if values.become:
            self._env[values.become.credential] = {**values.become.env, "SANDKEEP_SANDBOX_ID": values.become.sandbox_id}
        return Resumed(0.0, f"draw {len(self.resumes)}")

    async def environment(self, endpoint: Endpoint) -> dict[str, str]:
        self._reach(endpoint)
        return self._env.get(endpoint.credential, {})

    async def exec(self, endpoint: Endpoint, request: ExecRequest) -> ExecResult:
        """Knows `echo WORDS`, `cat` (gives stdin back), `exit N`, `sleep SECONDS`; a shell line is split at spaces."""
        self._reach(endpoint)
        words = request.argv[-1].split() if request.argv[0].endswith("bash") else list(request.argv)
        begun, code, out = time.monotonic(), 0, b""
        match words:
            case ["echo", *rest]:
                out = " ".join(rest).encode() + b"\n"
            case ["cat"]:
                out = request.stdin
            case ["exit", number]:
                code = int(number) & 255
            case ["sleep", seconds]:
                with anyio.move_on_after(request.timeout) as scope:
                    await anyio.sleep(float(seconds))
                code = 137 if scope.cancelled_caught else 0
            case _:
                raise InvalidArgument(f"cannot start {words[0]!r}")
        return ExecResult(
            42, code, 9 if code == 137 else None, out, b"", False, code == 137, False, time.monotonic() - begun
        )

    async def events(self, endpoint: Endpoint, after: int) -> list[dict[str, Any]]:
        self._reach(endpoint)
        return []

    @asynccontextmanager
    async def request(
        self,
        endpoint: Endpoint,
        method: str,
        target: str,
        headers: list[tuple[bytes, bytes]],
        body: AsyncIterator[bytes] | bytes | None,
    ) -> AsyncIterator[HttpAnswer]:
        """Gives back what it was asked, as JSON."""
        self._reach(endpoint)
        taken = body if isinstance(body, bytes) else b""
        if body is not None and not isinstance(body, bytes):
            async for chunk in body:
                taken += chunk
        answer = {"method": method, "target": target, "body": taken.decode(errors="replace")}

        async def chunks() -> AsyncIterator[bytes]:
            yield json.dumps(answer).encode()

        yield HttpAnswer(200, [(b"content-type", b"application/json")], chunks())

    async def hang_up(self, sandbox_address: str) -> None:
        self.hung_up.append(sandbox_address)
