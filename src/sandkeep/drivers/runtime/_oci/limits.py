"""From a sandbox's limits to what is written into control group files. Pure."""

from dataclasses import dataclass

from sandkeep.domain.quantities import MIB
from sandkeep.domain.sandbox import Limits

CPU_PERIOD = 100_000
"""Microseconds over which the CPU quota is counted; the kernel's default."""


@dataclass(frozen=True)
class GroupLimits:
    """quota: microseconds of CPU per CPU_PERIOD; memory: bytes, swap included; pids: processes and threads."""

    quota: int
    memory: int
    pids: int


def for_native(limits: Limits) -> GroupLimits:
    """Guest processes are host processes: the limits as they are."""
    return GroupLimits(_quota(limits.cpus), _pages(limits.memory), limits.pids)


def for_gvisor(limits: Limits) -> GroupLimits:
    """gVisor's kernel lives in the same group as its guest: above the guest's memory, headroom in which the agent's
    out-of-memory guard can act before the host's kernel would end the whole sandbox (measured: 256 MiB are enough for
    eight processes that allocate at once, 128 MiB are not). A guest thread takes up to two host threads, and reaching
    the limit ends the sandbox, so that it is protection of the host only."""
    memory = limits.memory + max(256 * MIB, limits.memory // 4)
    return GroupLimits(_quota(limits.cpus), _pages(memory), max(4096, 2 * limits.pids + 1024))


def _quota(cpus: float) -> int:
    return max(1000, round(cpus * CPU_PERIOD))


def _pages(size: int) -> int:
    return size // 4096 * 4096
