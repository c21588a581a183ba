"""A runtime in memory: machines are entries in a dictionary that outlives the driver objects, as the kernel would."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from sandkeep.contracts.runtime import MachinePlan, MachineState, MachineUsage, MemoryImage, MemorySigns
from sandkeep.domain.capability import RuntimeCapabilities
from sandkeep.domain.errors import Conflict, Internal, NotFound, PauseFailed, SandkeepError, Unsupported
from sandkeep.domain.quantities import MIB
from sandkeep.domain.sandbox import Hold, Limits, Persistence, RuntimeKind
from sandkeep.lib.files import write_json_durably

_FILE = "memory.json"


@dataclass
class FakeMachine:
    """memory: what a test may put in and find again after a restore."""

    plan: MachinePlan
    pid: int
    limits: Limits
    frozen: bool = False
    oom_kills: int = 0
    memory: dict[str, str] = field(default_factory=dict)
    ended: anyio.Event = field(default_factory=anyio.Event)
    end: str = ""


@dataclass
class FakeKernel:
    """What survives a restart of the runner: give the same one to the next FakeRuntime."""

    machines: dict[str, FakeMachine] = field(default_factory=dict)
    last_pid: int = 1000


class FakeRuntime:
    """kind: the runtime that it plays; memory: whether it can save memory, as gVisor can."""

    def __init__(
        self, kind: RuntimeKind = RuntimeKind.GVISOR, *, kernel: FakeKernel | None = None, build: str = "fake-1"
    ) -> None:
        self.kernel = kernel or FakeKernel()
        self.calls: Counter[str] = Counter()
        self._build = build
        self._failures: dict[str, list[Exception]] = {}
        memory = kind is RuntimeKind.GVISOR
        self.capabilities = RuntimeCapabilities(
            kind=kind,
            available=True,
            version=build,
            isolation="none: it runs nothing",
            trusted_code_only=not memory,
            persistence=frozenset(Persistence) if memory else frozenset(Persistence) - {Persistence.FULL},
            holds=frozenset(Hold) if memory else frozenset({Hold.MEMORY}),
            unsupported={} if memory else {"full": "this runtime cannot save memory"},
        )

    def fail_next(self, call: str, error: Exception | None = None) -> None:
        """The next call of that method raises, once; several stand in line. boot and restore leave nothing then."""
        self._failures.setdefault(call, []).append(error or Internal(f"{call} was told to fail"))

    def die(self, machine_id: str, how: str = "ended by SIGKILL", *, oom: bool = False) -> None:
        """A machine ends by itself."""
        machine = self.kernel.machines.pop(machine_id)
        machine.oom_kills += oom
        machine.end = "ended: it was out of memory" if oom else how
        machine.ended.set()

    def _called(self, call: str) -> None:
        self.calls[call] += 1
        waiting = self._failures.get(call)
        if waiting:
            raise waiting.pop(0)

    def _machine(self, machine_id: str) -> FakeMachine:
        machine = self.kernel.machines.get(machine_id)
        if machine is None:
            raise NotFound(f"machine {machine_id} does not run")
        return machine

    async def open(self) -> None:
        self._called("open")

    async def close(self) -> None:
        self._called("close")

    async def boot(self, plan: MachinePlan) -> None:
        self._start("boot", plan)

    def _start(self, call: str, plan: MachinePlan) -> FakeMachine:
        if plan.id in self.kernel.machines:
            raise Conflict(f"there is a machine {plan.id} already")
        self._called(call)
        if not (plan.agent / "agent").exists():
            raise Internal("the machine did not start: there is no agent")
        self.kernel.last_pid += 1
        machine = self.kernel.machines[plan.id] = FakeMachine(plan, self.kernel.last_pid, plan.limits)
        return machine

    async def kill(self, machine_id: str) -> None:
        self._called("kill")
        if machine_id in self.kernel.machines:
            self.die(machine_id)

    async def freeze(self, machine_id: str) -> None:
        self._called("freeze")
        self._machine(machine_id).frozen = True

    async def thaw(self, machine_id: str) -> None:
        self._called("thaw")
        self._machine(machine_id).frozen = False

    def _savable(self) -> None:
        if Hold.DISK not in self.capabilities.holds:
            raise Unsupported(self.capabilities.unsupported["full"])

    async def prepare_save(self, machine_id: str) -> None:
        self._savable()
        if self._machine(machine_id).frozen:
            raise Conflict(f"machine {machine_id} is frozen: thaw it before a save is prepared")
        self._refuse("prepare_save")

    def _refuse(self, call: str) -> None:
        try:
            self._called(call)
        except SandkeepError as error:
            raise PauseFailed(error.message, hint=error.hint, **error.details) from error

    async def save(self, machine_id: str, folder: Path) -> MemoryImage:
        self._savable()
        machine = self._machine(machine_id)
        machine.frozen = True
        self._refuse("save")
        write_json_durably(folder / _FILE, machine.memory)
        return MemoryImage((_FILE,), {"runtime": "fake", "version": self._build})

    async def restore(self, plan: MachinePlan, folder: Path, image: MemoryImage) -> None:
        self.check_image(image)
        try:
            memory = json.loads((folder / _FILE).read_text())
        except (OSError, ValueError) as error:
            raise Internal(f"the image does not fit: {error}") from error
        self._start("restore", plan).memory = memory

    def check_image(self, image: MemoryImage) -> None:
        self._savable()
        if image.requires != {"runtime": "fake", "version": self._build}:
            raise Unsupported("this memory was saved with another gVisor version")

    async def keep_builds(self, images: list[dict[str, Any]]) -> None:
        self._called("keep_builds")

    async def set_limits(self, machine_id: str, limits: Limits) -> None:
        self._called("set_limits")
        self._machine(machine_id).limits = limits

    async def other_limits(self, machine_id: str, limits: Limits) -> str:
        has = self._machine(machine_id).limits
        return "" if has == limits else f"{has}, not {limits}"

    async def machines(self) -> list[MachineState]:
        return [
            MachineState(name, (m.pid,), m.frozen, m.plan.agent.name)
            for name, m in sorted(self.kernel.machines.items())
        ]

    async def wait_exit(self, machine_id: str) -> str:
        machine = self.kernel.machines.get(machine_id)
        if machine is None:
            return "there is no such machine"
        await machine.ended.wait()
        return machine.end

    async def usage(self, machine_id: str) -> MachineUsage | None:
        machine = self.kernel.machines.get(machine_id)
        return MachineUsage(0.1, 20 * MIB, 1, machine.oom_kills) if machine else None

    async def memory_signs(self) -> dict[str, MemorySigns]:
        return {machine_id: MemorySigns() for machine_id in self.kernel.machines}

    async def killed(self, machine_id: str) -> list[str]:
        return []

    async def log(self, machine_id: str, limit: int) -> str:
        return "agent started\n"[-limit:] if machine_id in self.kernel.machines and limit > 0 else ""
