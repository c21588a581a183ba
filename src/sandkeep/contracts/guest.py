"""The guest: what engine and control may ask of the agent in a sandbox. Every byte from it is a stranger's."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from anyio.abc import ByteStream

from sandkeep.domain.node import Endpoint

AGENT_PROTOCOLS = range(1, 2)
"""Versions of the agent's protocol that this version of ours speaks: sandboxes keep the agent that they were booted with."""


@dataclass(frozen=True)
class GuestInit:
    """What the agent is told after every boot. timestamp: seconds since the epoch; memory_limit: bytes."""

    sandbox_id: str
    hostname: str
    env: Mapping[str, str] = field(repr=False)
    timestamp: float
    dns: tuple[str, ...]
    memory_limit: int
    oom_guard: bool
    ca_bundle: str = ""
    generation: str = ""
    """Unique to this boot: programs inside watch the file that holds it, and reseed their generators when it changes."""
    new_identity: bool = False
    """The disk is a copy of another sandbox's: what must not be twice in the world is made anew, and the sandbox's own hooks
    have run, or the call fails."""
    identity: Mapping[str, bytes] | None = field(default=None, repr=False)
    """With `new_identity`: what it had before, in the place of anew (the disk comes back to the sandbox whose it is)."""


@dataclass(frozen=True)
class GuestResume:
    """What the agent is told after a restore of its memory. event: why, for the sandbox's own hooks; generation: unique to
    this restore; become: the memory is a copy of another sandbox's, whose credential opens it until then."""

    hostname: str
    generation: str
    event: str
    become: "Becoming | None" = None


@dataclass(frozen=True)
class Resumed:
    """What the agent told. behind: seconds that the clock inside was behind at last; draw: of the guest's random numbers."""

    behind: float
    draw: str


@dataclass(frozen=True)
class Becoming:
    """env: of the sandbox that it becomes; identity: files by name (machine-id, SSH host keys) that this had before; None: they
    are made anew."""

    sandbox_id: str
    credential: str = field(repr=False)
    env: Mapping[str, str] = field(repr=False)
    identity: Mapping[str, bytes] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Unsavable:
    """A file of the root disk that is deleted but still open or mapped: what a memory save cannot keep."""

    pid: int
    process: str
    path: str


@dataclass(frozen=True)
class ExecRequest:
    """timeout: seconds, None for none; stdin: bytes given whole."""

    argv: tuple[str, ...]
    user: str | None = None
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float | None = None
    stdin: bytes = b""
    max_output: int = 8 << 20


@dataclass(frozen=True)
class ExecResult:
    """exit_code: the command's, or 128+n when signal n ended it."""

    pid: int
    exit_code: int
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool
    timed_out: bool
    out_of_memory: bool
    duration: float


@dataclass(frozen=True)
class HttpAnswer:
    """A raw answer of the agent, body still to be read."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: AsyncIterator[bytes]


class Guest(Protocol):
    """Guarantees:

    * `dial` is the only way in: a byte stream to a port of the sandbox. Everything else here goes through it.
    * No call waits without a bound; a hung agent raises GuestUnreachable at its deadline.
    * An agent whose protocol is none of AGENT_PROTOCOLS raises GuestError, at once: its sandbox runs on, and only its next
      machine, with another agent, can be talked to.
    * Answers are size-limited and parsed as a stranger's; what does not parse raises GuestError.
    * Connections are kept per sandbox for reuse; `hang_up` closes all of them (before a memory save).
    """

    async def dial(self, endpoint: Endpoint, port: int | None = None) -> ByteStream:
        """Raises GuestUnreachable; with `silent` among its details when nothing came back at all."""
        ...

    async def wait_ready(self, endpoint: Endpoint, deadline: float) -> None:
        """Until the agent answers; `deadline` in seconds from now. Polls tightly at first (a boot is 20 to 150 ms)."""
        ...

    async def init(self, endpoint: Endpoint, values: GuestInit) -> None:
        """The first one after a boot sets the credential."""
        ...

    async def quiesce(self, endpoint: Endpoint, deadline: float, event: str = "") -> tuple[Unsavable, ...]:
        """Flush file systems; name what a memory save could not keep. `event`: the sandbox's own quiesce hooks run first
        (theirs is half of the deadline), and are told it."""
        ...

    async def flush(self, endpoint: Endpoint, deadline: float, event: str = "") -> None:
        """The same where no memory is saved: nothing is searched for."""
        ...

    async def thawed(self, endpoint: Endpoint, deadline: float, event: str) -> None:
        """The end of what the quiesce hooks began."""
        ...

    async def resumed(self, endpoint: Endpoint, values: GuestResume, now: Callable[[], float]) -> Resumed:
        """The steps after a memory restore, before any traffic passes. `now`: the host's clock. Raises when the clock inside
        is off by more than 0.5 s at last (that the host's was set meanwhile, or that the answer took long, does not
        count), and when anything of a new identity or a hook failed."""
        ...

    async def environment(self, endpoint: Endpoint) -> dict[str, str]:
        """What processes of clients are given."""
        ...

    async def exec(self, endpoint: Endpoint, request: ExecRequest) -> ExecResult: ...

    async def events(self, endpoint: Endpoint, after: int) -> list[dict[str, Any]]: ...

    def request(
        self,
        endpoint: Endpoint,
        method: str,
        target: str,
        headers: list[tuple[bytes, bytes]],
        body: AsyncIterator[bytes] | bytes | None,
    ) -> AbstractAsyncContextManager[HttpAnswer]:
        """Pass one HTTP request through, streaming both ways. The credential is added here."""
        ...

    async def hang_up(self, sandbox_address: str) -> None: ...
