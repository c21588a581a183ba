"""Admission: what fits on the node. Pure functions over figures; what does not fit is refused at once, with what is free."""

from collections.abc import Iterable
from dataclasses import dataclass

from sandkeep.domain.errors import NoCapacity
from sandkeep.domain.node import Capacity
from sandkeep.domain.quantities import MIB, format_size
from sandkeep.domain.sandbox import Hold, Persistence, Phase, Spec
from sandkeep.engine.records import Record

RETRY_AFTER = 30.0
_PROCESSES, _DESCRIPTORS, _FILES, _DATA, _METADATA = 256, 32, 64, 32 * MIB, 8 * MIB
"""What one more machine may take of the host: a gVisor of two processors has some 60 threads, and 110 in a storm."""


@dataclass(frozen=True)
class Rules:
    """overcommit: how often the host's RAM may be promised; reserves: bytes that stay free."""

    memory_overcommit: float = 4.0
    memory_reserve: int = 512 * MIB
    pool_reserve: int = 256 * MIB


def promised_memory(records: Iterable[Record]) -> int:
    """The memory limits of all sandboxes that hold memory now."""
    return sum(r.spec.limits.memory for r in records if holds_memory(r))


def holds_memory(record: Record) -> bool:
    return record.machine is not None and (
        record.phase is Phase.RUNNING or (record.phase is Phase.PAUSED and record.hold is Hold.MEMORY)
    )


def reserved_pool(records: Iterable[Record]) -> int:
    """Room that running `full` sandboxes need in the pool for their memory."""
    return sum(r.spec.limits.memory for r in records if r.spec.persistence is Persistence.FULL and holds_memory(r))


def admit(capacity: Capacity, rules: Rules, spec: Spec, *, new_disk: bool) -> None:
    """Raises NoCapacity when one more machine of this spec does not fit."""
    need, full = spec.limits.memory, spec.persistence is Persistence.FULL
    fits = still_fits(capacity, rules, need, full=full)
    left = capacity.memory_limit - capacity.memory_promised
    if need > left:
        _refuse(
            f"{format_size(need)} of memory are asked and {format_size(max(0, left))} are left to promise",
            "stop or pause (hold=disk) something, or ask for less memory",
            capacity,
            fits,
        )
    if capacity.memory_available < rules.memory_reserve + min(need, 64 * MIB):
        _refuse(
            f"the host has {format_size(capacity.memory_available)} of memory free, of which "
            f"{format_size(rules.memory_reserve)} are kept in reserve",
            "stop or pause (hold=disk) something",
            capacity,
            0,
        )
    if capacity.slots_free < 1:
        _refuse("no network address is free", "delete or stop something, or wait ten minutes", capacity, 0)
    for has, needs, what, hint in (
        (capacity.processes_free, _PROCESSES, "processes", "stop something, or raise kernel.pid_max and threads-max"),
        (capacity.descriptors_free, _DESCRIPTORS, "descriptors of the runner", "raise the limit of open files"),
        (capacity.files_free, _FILES, "inodes beside the node's records", "remove files there"),
    ):
        if has is not None and has < needs:
            _refuse(f"{max(0, has)} {what} are free on the host", hint, capacity, 0)
    if capacity.data_free < _DATA:
        text = f"{format_size(capacity.data_free)} are free on the host's disk, where the node's records are"
        _refuse(text, "free space there", capacity, 0)
    room = capacity.pool_free - capacity.pool_reserved - rules.pool_reserve
    wanted = (need if full else 0) + (64 * MIB if new_disk else 0)
    if wanted:
        _check_metadata(capacity)
    if wanted > room:
        _refuse(
            f"{format_size(wanted)} of room in the pool are needed and {format_size(max(0, room))} are free"
            + (" (a full sandbox reserves its memory limit)" if full else ""),
            "delete sandboxes or templates, or grow the pool: sandkeep setup --pool-size",
            capacity,
            fits,
        )


def admit_disk(capacity: Capacity, rules: Rules, size: int) -> None:
    """Raises NoCapacity when a disk with so many bytes of content does not fit into the pool."""
    _check_metadata(capacity)
    room = capacity.pool_free - capacity.pool_reserved - rules.pool_reserve
    if size > room:
        _refuse(
            f"its archive needs {format_size(size)} in the pool and {format_size(max(0, room))} are free",
            "delete or archive something, or grow the pool: sandkeep setup --pool-size",
            capacity,
            0,
        )


def admit_save(capacity: Capacity, rules: Rules, memory_used: int, *, stays: bool = False) -> None:
    """Raises NoCapacity when a memory image of this size does not fit into the pool. `stays`: beside what the pauses of
    running sandboxes need, since this one runs on."""
    _check_metadata(capacity)
    room = capacity.pool_free - rules.pool_reserve // 2 - (capacity.pool_reserved if stays else 0)
    if memory_used + 16 * MIB > room:
        _refuse(
            f"the memory image needs {format_size(memory_used)} in the pool and {format_size(max(0, room))} are free",
            "keep no memory on disk (pause --hold=memory, snapshot --kind disk), delete something, or grow the pool: "
            "sandkeep setup --pool-size",
            capacity,
            0,
        )


def _check_metadata(capacity: Capacity) -> None:
    left = capacity.pool_metadata_free
    if left is not None and left < _METADATA:
        _refuse(
            f"{format_size(left)} of room for metadata (names and small files) are free in the pool",
            "delete sandboxes with many small files, or grow the pool: sandkeep setup --pool-size",
            capacity,
            0,
        )


def still_fits(capacity: Capacity, rules: Rules, memory: int, *, full: bool = False) -> int:
    """How many more sandboxes of this memory limit fit; `full` ones take it from the pool, too."""
    by_memory = (capacity.memory_limit - capacity.memory_promised) // memory
    by_pool = (capacity.pool_free - capacity.pool_reserved - rules.pool_reserve) // (64 * MIB + (memory if full else 0))
    return max(0, min(by_memory, by_pool, capacity.slots_free))


def _refuse(message: str, hint: str, capacity: Capacity, fits: int) -> None:
    raise NoCapacity(
        message,
        hint=hint,
        retry_after=RETRY_AFTER,
        fits=fits,
        memory_free=max(0, capacity.memory_limit - capacity.memory_promised),
        memory_available=capacity.memory_available,
        pool_free=max(0, capacity.pool_free - capacity.pool_reserved),
        slots_free=capacity.slots_free,
        processes_free=capacity.processes_free,
        data_free=capacity.data_free,
    )
