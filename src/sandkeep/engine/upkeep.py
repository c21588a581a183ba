"""What is looked at every few seconds while the node serves: rules that somebody flushed, kills for memory."""

from collections.abc import Callable
from dataclasses import dataclass

import anyio

from sandkeep.contracts.runtime import MemorySigns
from sandkeep.domain.errors import SandkeepError
from sandkeep.domain.node import FactKind
from sandkeep.domain.sandbox import Phase, RuntimeKind
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Record
from sandkeep.telemetry.log import log

REPAIR_EVERY = 5.0
LOOK_EVERY = 1.0
_QUIET = 5.0
"""Seconds between two reports of one sandbox: who is root inside can make up as many kills as he likes."""
_NAMED = 5


@dataclass
class _Seen:
    """What was reported of a machine: signs, and the number of the agent's last event."""

    signs: MemorySigns
    event: int
    not_before: float = 0.0


class Upkeep:
    def __init__(self, parts: Parts, killed: Callable[[Record], None]) -> None:
        """`killed`: hears of each sandbox in which a process was killed for want of memory."""
        self._parts = parts
        self._killed = killed
        self._seen: dict[str, _Seen] = {}

    async def run(self) -> None:
        """Until cancelled. A kill while no runner ran is not reported: what is found at the start counts as known."""
        await self._begin()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._repair)
            tasks.start_soon(self._look)

    # -- the network

    async def _repair(self) -> None:
        while True:
            await self._parts.clock.sleep(REPAIR_EVERY)
            attached = [
                self._parts.networks.describe(r.id, r.slot, r.spec.network)
                for r in self._parts.records.sandboxes.values()
                if r.slot and r.phase is not Phase.DELETED
            ]
            try:
                repaired = await self._parts.networks.repair(attached)
            except SandkeepError as error:
                log("task.failed", "error", task="network.repair", error=error.message)
                continue
            if repaired:
                log("network.repaired", "warning", count=repaired)

    # -- memory

    async def _begin(self) -> None:
        for machine_id, signs in (await self._signs()).items():
            record = self._running().get(machine_id)
            last = 0
            if record:
                last = max((number for number, _ in await self._told(record, 0)), default=0)
            self._seen[machine_id] = _Seen(signs, last)

    async def _look(self) -> None:
        while True:
            await self._parts.clock.sleep(LOOK_EVERY)
            now = self._parts.clock.monotonic()
            found, running = await self._signs(), self._running()
            self._seen = {machine_id: seen for machine_id, seen in self._seen.items() if machine_id in found}
            for machine_id, signs in found.items():
                seen = self._seen.setdefault(machine_id, _Seen(MemorySigns(), 0))
                record = running.get(machine_id)
                if record is None or signs == seen.signs or now < seen.not_before:
                    continue
                try:
                    if await self._report(record, machine_id, signs, seen):
                        seen.not_before = now + _QUIET
                except SandkeepError as error:  # the feed's disk takes nothing: what runs goes on
                    log("task.failed", "error", task="memory.report", error=error.message)

    def _running(self) -> dict[str, Record]:
        records = self._parts.records.sandboxes.values()
        return {r.machine: r for r in records if r.machine and r.phase is Phase.RUNNING}

    async def _signs(self) -> dict[str, MemorySigns]:
        found: dict[str, MemorySigns] = {}
        for runtime in self._parts.runtimes.values():
            if runtime.capabilities.available:
                found |= await runtime.memory_signs()
        return found

    async def _report(self, record: Record, machine_id: str, signs: MemorySigns, seen: _Seen) -> bool:
        """Whether a process was killed: by the guard inside, where there is one, else by the kernel."""
        if record.spec.runtime is RuntimeKind.GVISOR:
            told = await self._told(record, seen.event)
            names = [name for _, name in told]
            seen.event = max((number for number, _ in told), default=seen.event)
        else:
            count = signs.kills - seen.signs.kills
            names = (await self._parts.runtime(record.spec.runtime).killed(machine_id))[-count:] if count > 0 else []
            names += ["a process"] * (count - len(names))
        seen.signs = signs
        if not names:
            return False
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        reason = f"out of memory: killed {', '.join(names[:_NAMED])}{more}"
        log("machine.process_killed", sandbox=record.id, machine=machine_id, count=len(names))
        self._parts.feed.tell(FactKind.PROCESS_KILLED, record.id, record.epoch, reason=reason, processes=names[:_NAMED])
        self._killed(record)
        return True

    async def _told(self, record: Record, after: int) -> list[tuple[int, str]]:
        """(number, process) of the kills that the agent tells of. What it says may be a lie, about itself alone."""
        try:
            events = await self._parts.guest.events(self._parts.endpoint(record), after)
        except SandkeepError:
            return []
        found = []
        for event in events:
            number, pid = event.get("seq"), event.get("pid")
            if event.get("type") == "oom_kill" and isinstance(number, int) and after < number < 1 << 53:
                name = "".join(c for c in str(event.get("process", ""))[:32] if c.isprintable())
                found.append((number, f"{name or 'a process'} (pid {pid})" if isinstance(pid, int) else name))
        return found
