"""What the engine works with: drivers behind their contracts, the node's own records, and a few settings."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from sandkeep.contracts.clock import Clock
from sandkeep.contracts.disks import Disks
from sandkeep.contracts.guest import Guest
from sandkeep.contracts.network import Networks
from sandkeep.contracts.runtime import MachinePlan, Runtime
from sandkeep.domain.errors import Unsupported
from sandkeep.domain.ids import body
from sandkeep.domain.node import Capacity, Endpoint
from sandkeep.domain.sandbox import Persistence, RuntimeKind, Spec
from sandkeep.engine.admission import Rules, admit, holds_memory, promised_memory, reserved_pool
from sandkeep.engine.archive.vault import Vault
from sandkeep.engine.deletions import Deletions
from sandkeep.engine.feed import Feed
from sandkeep.engine.host import Host
from sandkeep.engine.journal import Journal
from sandkeep.engine.records import Record, Records
from sandkeep.engine.slots import Slots


@dataclass(frozen=True)
class NodeSettings:
    """prefix: begins the name of everything on the host; agent_folder: content-addressed, holds
    the agent binary of this version; those of others lie beside it."""

    node_id: str
    prefix: str
    agent_folder: Path
    agent_port: int = 49983
    boot_deadline: float = 30.0
    quiesce_deadline: float = 5.0
    ca_bundle: str = ""
    proxy_env: dict[str, str] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True)
class Parts:
    settings: NodeSettings
    clock: Clock
    disks: Disks
    networks: Networks
    runtimes: dict[RuntimeKind, Runtime]
    guest: Guest
    records: Records
    journal: Journal
    deletions: Deletions
    feed: Feed
    slots: Slots
    vault: Vault
    host: Callable[[], Host]
    pending: dict[str, Spec] = field(default_factory=dict)
    """Sandboxes whose machine is being made: admitted, and in no record yet."""
    draws: dict[str, None] = field(default_factory=dict)
    """What restored guests drew from their kernels' random numbers, the latest last."""
    _admission: anyio.Lock = field(default_factory=anyio.Lock)

    @asynccontextmanager
    async def admitted(self, sandbox_id: str, spec: Spec, *, new_disk: bool) -> AsyncIterator[None]:
        """Its memory and room are promised while the body makes the machine: concurrent ones count each other.
        Raises NoCapacity."""
        async with self._admission:
            admit(await self.capacity(), self.settings.rules, spec, new_disk=new_disk)
            self.pending[sandbox_id] = spec
        try:
            yield
        finally:
            self.pending.pop(sandbox_id, None)

    @contextmanager
    def promised(self, record: Record) -> Iterator[None]:
        """What a sandbox that runs has of the host stays its own while it has no machine for a moment."""
        self.pending[record.id] = record.spec
        try:
            yield
        finally:
            self.pending.pop(record.id, None)

    def runtime(self, kind: RuntimeKind) -> Runtime:
        """Raises Unsupported when the host lacks it."""
        found = self.runtimes.get(kind)
        if found is None or not found.capabilities.available:
            reason = found.capabilities.reason if found else "it is not configured on this node"
            raise Unsupported(
                f"the runtime {kind} is not available here: {reason}",
                hint="sandkeep runtimes lists what this host can do; sandkeep doctor says how to add what is missing",
                field="runtime",
            )
        return found

    def machine_id(self, record: Record) -> str:
        """Never used twice, and of one length per instance (runsc matches ids by prefix)."""
        return f"{self.settings.prefix}-{body(record.id)}-{record.boots:06d}"

    def agent_folder(self, record: Record) -> Path:
        current = self.settings.agent_folder
        return current.with_name(record.agent) if record.agent else current

    def plan(self, record: Record) -> MachinePlan:
        assert record.machine is not None
        return MachinePlan(
            id=record.machine,
            sandbox_id=record.id,
            hostname=hostname(record),
            root=self.disks.path(record.id),
            agent=self.agent_folder(record),
            agent_port=self.settings.agent_port,
            network=self.networks.describe(record.id, record.slot, record.spec.network),
            limits=record.spec.limits,
        )

    def endpoint(self, record: Record) -> Endpoint:
        attachment = self.networks.describe(record.id, record.slot, record.spec.network)
        return Endpoint("tcp", attachment.address, self.settings.agent_port, record.token)

    async def capacity(self) -> Capacity:
        host = self.host()
        space = await self.disks.space()
        records = self.records.sandboxes.values()
        rules = self.settings.rules
        coming = [spec for sandbox_id, spec in self.pending.items() if not self._holds(sandbox_id)]
        full = sum(spec.limits.memory for spec in coming if spec.persistence is Persistence.FULL)
        return Capacity(
            memory_total=host.memory_total,
            memory_available=host.memory_available,
            memory_promised=promised_memory(records) + sum(spec.limits.memory for spec in coming),
            memory_limit=int(host.memory_total * rules.memory_overcommit),
            pool_total=space.total,
            pool_free=space.free,
            pool_metadata_free=space.metadata_free,
            pool_reserved=reserved_pool(records) + full,
            slots_total=self.slots.total,
            slots_free=self.slots.free,
            processes_free=host.processes_free,
            descriptors_free=host.descriptors_free,
            data_free=host.data_free,
            files_free=host.files_free,
        )

    def _holds(self, sandbox_id: str) -> bool:
        record = self.records.sandboxes.get(sandbox_id)
        return record is not None and holds_memory(record)


def hostname(record: Record) -> str:
    return record.sandbox.name or f"sbx-{body(record.id)[:8]}"
