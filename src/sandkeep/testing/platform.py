"""The whole system in one test process: real server, control, store and engine; disk, network, runtime and guest faked.

Used by tests of logic and of the API. `restart_node()` plays a kill -9 of the runner: what the fakes' kernel holds stays.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
from anyio.abc import TaskGroup

from sandkeep.app.server import make_services
from sandkeep.contracts.runner import Runner
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import TemplateOnNode
from sandkeep.domain.quantities import GIB
from sandkeep.domain.sandbox import RuntimeKind
from sandkeep.drivers.fake.clock import FakeClock
from sandkeep.drivers.fake.disks import FakeDisks
from sandkeep.drivers.fake.guest import FakeGuest
from sandkeep.drivers.fake.networks import FakeNetworks
from sandkeep.drivers.fake.runtimes import FakeKernel, FakeRuntime
from sandkeep.edge.api.app import api_app
from sandkeep.edge.api.services import Services
from sandkeep.engine.admission import Rules
from sandkeep.engine.feed import Feed
from sandkeep.engine.journal import Journal
from sandkeep.engine.parts import NodeSettings, Parts
from sandkeep.engine.records import Records
from sandkeep.engine.slots import Slots
from sandkeep.engine.supervisor import Supervisor
from sandkeep.store.database import Database

VERSION = "0.0-test"


class LocalPlatform:
    """Made by `platform()`. `http` speaks to the REST door with a valid key."""

    def __init__(self, folder: Path, tasks: TaskGroup) -> None:
        self.folder = folder
        self._tasks = tasks
        self.clock = FakeClock()
        self.kernels = {kind: FakeKernel() for kind in RuntimeKind}
        self.disks = FakeDisks(folder / "pool")
        self.networks = FakeNetworks(folder / "run")
        self.guest = FakeGuest(self._alive)
        self.memory = (16 * GIB, 12 * GIB)
        self.runtimes: dict[RuntimeKind, FakeRuntime] = {}
        self.parts: Parts
        self.node: Supervisor
        self.runner = _Relay()
        self.services: Services
        self.http: httpx2.AsyncClient
        self._node_scope: anyio.CancelScope | None = None

    def _alive(self, address: str) -> bool:
        return any(
            machine.plan.network.address == address and not machine.frozen
            for kernel in self.kernels.values()
            for machine in kernel.machines.values()
        )

    async def start_node(self) -> None:
        agent = self.folder / "agents" / "fake"
        agent.mkdir(parents=True, exist_ok=True)
        (agent / "agent").touch()
        self.runtimes = {kind: FakeRuntime(kind, kernel=self.kernels[kind]) for kind in RuntimeKind}
        node = self.folder / "node"
        self.parts = Parts(
            settings=NodeSettings("node-test", "tt", agent, rules=Rules(pool_reserve=0, memory_reserve=0)),
            clock=self.clock,
            disks=self.disks,
            networks=self.networks,
            runtimes=dict(self.runtimes),
            guest=self.guest,
            records=Records(node),
            journal=Journal(node / "journal"),
            feed=Feed(node / "feed.jsonl", self.clock),
            slots=Slots(self.folder / "run" / "slots.json", 1000, self.clock),
            memory=lambda: self.memory,
        )
        self.node = Supervisor(self.parts, VERSION)
        await self._tasks.start(self._run_node)
        self.runner.node = self.node

    async def _run_node(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.CancelScope() as self._node_scope:
            await self.node.run(task_status.started)

    async def kill_node(self) -> None:
        """Everything that the runner had in memory is gone; what was durable, and the machines, stay."""
        assert self._node_scope is not None
        self._node_scope.cancel()
        await anyio.lowlevel.checkpoint()

    async def restart_node(self) -> None:
        await self.kill_node()
        await self.start_node()

    async def add_template(self, name: str) -> str:
        template_id = new_id(IdKind.TEMPLATE)
        await self.disks.open()
        root = await self.disks.begin_template(template_id)
        (root / "marker").write_text(name)
        size = await self.disks.finish_template(template_id)
        records = Records(self.folder / "node")
        records.load()
        records.save_template(TemplateOnNode(template_id, name, time.time(), size))
        return template_id


class _Relay:
    """Hands every call to the supervisor of the moment, as the socket does for the real server."""

    def __init__(self) -> None:
        self.node: Runner | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self.node, name)


@asynccontextmanager
async def platform(folder: Path, url: str | None = None) -> AsyncIterator[LocalPlatform]:
    """A platform with the template `base`; all its tasks end with the block. `url`: of a database, else SQLite's."""
    (folder / "run" / "grants").mkdir(parents=True, exist_ok=True)
    database = Database(url or f"sqlite:///{folder}/test.db")
    await database.open()
    try:
        async with anyio.create_task_group() as tasks:
            made = LocalPlatform(folder, tasks)
            if not list((folder / "node" / "templates").glob("*.json")):
                await made.add_template("base")
            await made.start_node()
            grants = folder / "run" / "grants"
            made.services = await make_services(database, made.runner, made.guest, made.clock, VERSION, grants)  # type: ignore[arg-type]
            made.services.templates.start(tasks)
            tasks.start_soon(made.services.reconciler.run)
            _, secret = await made.services.keys.create(await made.services.keys.default_project(), "test")
            transport = httpx2.ASGITransport(app=api_app(made.services, VERSION), raise_app_exceptions=False)
            headers = {"authorization": f"Bearer {secret}"}
            async with httpx2.AsyncClient(transport=transport, base_url="http://test", headers=headers) as made.http:
                with anyio.fail_after(10):
                    while (await made.http.get("/readyz")).status_code != 200:
                        await anyio.sleep(0.01)
                try:
                    yield made
                finally:
                    tasks.cancel_scope.cancel()
    finally:  # after every task that may hold its connection
        with anyio.CancelScope(shield=True):
            await database.close()
