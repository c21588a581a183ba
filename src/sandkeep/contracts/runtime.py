"""Runtimes: what the engine may ask of an isolation technology.

A *machine* is the live container behind a sandbox. Its id is made by the engine (`<prefix>-<20>-<boot number>`, fixed
length per instance) and is never used twice. A driver holds no state of its own: all it knows it reads from the
kernel and from its runtime's folder, so that a restarted runner can adopt what lives.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sandkeep.contracts.network import Attachment
from sandkeep.domain.capability import RuntimeCapabilities
from sandkeep.domain.sandbox import Limits


@dataclass(frozen=True)
class MachinePlan:
    """All that is needed to boot or restore a machine. No secret is in here: environment and token go to the agent.

    root: folder of the writable root file system; agent: content-addressed folder with the `agent` binary, mounted
    read-only at /.sandkeep; agent_port: where it listens inside."""

    id: str
    sandbox_id: str
    hostname: str
    root: Path
    agent: Path
    agent_port: int
    network: Attachment
    limits: Limits


@dataclass(frozen=True)
class MachineState:
    """A machine that the kernel knows. pids: the processes whose death is the machine's death (the runtime's own).
    agent: name of the folder that was mounted as its agent; empty when that cannot be told."""

    id: str
    pids: tuple[int, ...]
    frozen: bool
    agent: str = ""


@dataclass(frozen=True)
class MachineUsage:
    cpu_seconds: float
    memory: int
    processes: int
    oom_kills: int


@dataclass(frozen=True)
class MemorySigns:
    """Numbers whose growth says that a machine may have run out of memory. kills: processes of it that the host's kernel
    killed for that; printed: bytes of its console, on which the agent says a word when its guard killed somebody."""

    kills: int = 0
    printed: int = 0


@dataclass(frozen=True)
class MemoryImage:
    """What a save made: names of files in its folder, and what a restore must match (runtime build, CPU features...)."""

    files: tuple[str, ...]
    requires: dict[str, Any] = field(default_factory=dict)


class Runtime(Protocol):
    """Guarantees:

    * `boot` returns when the agent process was started (not yet when it answers). If it raises, nothing of the machine
      is left: no process, cgroup, runtime state or mount. So is it after `kill`, from every state, within its deadline.
    * `kill` of a machine that does not exist is no error.
    * All processes of a machine are in the machine's own cgroup from their first instruction, with the limits set.
    * `freeze` and `thaw` are idempotent; a frozen machine runs no instruction of its guest.
    * The build that runs a machine is put aside at its save, and restores the image also when another was installed
      since.
    * `save` leaves the machine frozen and alive whether it succeeds or raises PauseFailed (then the folder's content
      is worthless); the caller thaws or kills it. Only where capabilities hold Hold.DISK.
    * `restore` gives a machine that goes on from the image; it reads the image only. Raises Internal when the image
      does not fit; nothing is left then.
    * Blocking work runs in threads or child processes: no call blocks the event loop for more than a millisecond or two.
    """

    capabilities: RuntimeCapabilities

    async def open(self) -> None:
        """Prepare what all machines share (state folder, mount namespace, cgroup parents). Idempotent. Fills
        `capabilities` by probing the host."""
        ...

    async def close(self) -> None:
        """Remove what `open` made on the host (purge). All machines were killed before."""
        ...

    async def boot(self, plan: MachinePlan) -> None: ...

    async def kill(self, machine_id: str) -> None: ...

    async def freeze(self, machine_id: str) -> None: ...

    async def thaw(self, machine_id: str) -> None: ...

    async def prepare_save(self, machine_id: str) -> None:
        """The probe before a save: raises PauseFailed when the memory cannot be saved now; the machine runs on
        unharmed (`connecting` in its details: refuse what waits for an answer, and try again). On gVisor the dry
        checkpoint, which also resets outside connections (network.reset_tcp comes first)."""
        ...

    async def save(self, machine_id: str, folder: Path) -> MemoryImage:
        """Freeze, and write memory and processes into the (existing, empty) folder. Files are complete, not yet durable:
        the caller syncs them."""
        ...

    async def restore(self, plan: MachinePlan, folder: Path, image: MemoryImage) -> None: ...

    def check_image(self, image: MemoryImage) -> None:
        """Raises Unsupported when this host or build cannot restore the image, before anything was touched."""
        ...

    async def keep_builds(self, images: list[dict[str, Any]]) -> None:
        """`images`: what each image that is kept requires. Builds of the runtime that were put aside for others may go."""
        ...

    async def set_limits(self, machine_id: str, limits: Limits) -> None: ...

    async def other_limits(self, machine_id: str, limits: Limits) -> str:
        """What the kernel enforces other than these, '' when it is these."""
        ...

    async def machines(self) -> list[MachineState]:
        """Every machine of this instance that the kernel or the runtime's folder knows, also half-dead ones."""
        ...

    async def wait_exit(self, machine_id: str) -> str:
        """Returns when the machine has ended by itself or by force; the text says how (for people). Returns at once
        when there is none."""
        ...

    async def usage(self, machine_id: str) -> MachineUsage | None:
        """None when there is no such machine."""
        ...

    async def memory_signs(self) -> dict[str, MemorySigns]:
        """Of every machine, in one cheap look: it is taken every second."""
        ...

    async def killed(self, machine_id: str) -> list[str]:
        """Names of the processes that the host's kernel killed in it for memory, oldest first; of as many as the kernel's
        log still has."""
        ...

    async def log(self, machine_id: str, limit: int) -> str:
        """The last `limit` bytes of what the runtime and the agent's console printed, for people."""
        ...
