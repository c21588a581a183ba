"""The whole system in one test process: real server, control, store and engine; disk, network, runtime and guest faked.

Used by tests of logic and of the API. `restart_node()` plays a kill -9 of the runner: what the fakes' kernel holds stays.
`server()` puts a control plane over another database in the place of the first.
"""

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio
import httpx2
from anyio.abc import TaskGroup

from sandkeep.app.server import make_services
from sandkeep.contracts.runner import Runner
from sandkeep.domain.errors import Unavailable
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import TemplateOnNode
from sandkeep.domain.quantities import GIB
from sandkeep.domain.sandbox import RuntimeKind, Sandbox
from sandkeep.drivers.fake.clock import FakeClock
from sandkeep.drivers.fake.disks import FakeDisks
from sandkeep.drivers.fake.guest import FakeGuest
from sandkeep.drivers.fake.networks import FakeNetworks
from sandkeep.drivers.fake.objects import FakeObjects
from sandkeep.drivers.fake.runtimes import FakeKernel, FakeRuntime
from sandkeep.edge.api.app import api_app
from sandkeep.edge.api.services import Services
from sandkeep.engine.admission import Rules
from sandkeep.engine.archive.keys import KeyRing
from sandkeep.engine.archive.vault import Vault
from sandkeep.engine.archive.worker import Worker
from sandkeep.engine.deletions import Deletions
from sandkeep.engine.feed import Feed
from sandkeep.engine.host import Host
from sandkeep.engine.journal import Journal
from sandkeep.engine.parts import NodeSettings, Parts
from sandkeep.engine.records import Records
from sandkeep.engine.slots import Slots
from sandkeep.engine.supervisor import Supervisor
from sandkeep.store import sandboxes as sandbox_store
from sandkeep.store.database import Database

VERSION = "0.0-test"


class LocalPlatform:
    """Made by `platform()`. `http` speaks to the REST door with a valid key."""

    def __init__(self, folder: Path, tasks: TaskGroup, url: str) -> None:
        self.folder = folder
        self._tasks = tasks
        self._url = url
        self.clock = FakeClock()
        self.kernels = {kind: FakeKernel() for kind in RuntimeKind}
        self.disks = FakeDisks(folder / "pool")
        self.networks = FakeNetworks(folder / "run")
        self.guest = FakeGuest(self._alive)
        self.objects = FakeObjects()
        self.host = Host(16 * GIB, 12 * GIB, 30000, 1000, 10 * GIB, None)
        self.agent = "fake"
        self.runtimes: dict[RuntimeKind, FakeRuntime] = {}
        self.parts: Parts
        self.node: Supervisor
        self.runner = _Relay()
        self.services: Services
        self.http: httpx2.AsyncClient
        self._node_scope: anyio.CancelScope | None = None
        self._database: Database
        self._server_scope: anyio.CancelScope
        self._server_ended: anyio.Event

    def _alive(self, address: str) -> bool:
        return any(
            machine.plan.network.address == address and not machine.frozen
            for kernel in self.kernels.values()
            for machine in kernel.machines.values()
        )

    async def start_node(self) -> None:
        agent = self.folder / "agents" / self.agent
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
            deletions=Deletions(node / "deleted.log", self.clock),
            feed=Feed(node / "feed.jsonl", self.clock),
            slots=Slots(self.folder / "run" / "slots.json", 1000, self.clock),
            vault=Vault(self.objects, KeyRing(node / "keys"), Worker(None)),
            host=lambda: self.host,
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

    async def start_server(self, url: str | None = None) -> None:
        """Over another database, when one is named. Ready when it returns."""
        self._database = Database(url or self._url)
        await self._database.open()
        grants = self.folder / "run" / "grants"
        self.services = await make_services(self._database, self.runner, self.guest, self.clock, VERSION, grants)  # type: ignore[arg-type]
        await self._tasks.start(self._run_server)
        _, secret = await self.services.keys.create(await self.services.keys.default_project(), "test")
        transport = httpx2.ASGITransport(app=api_app(self.services, VERSION), raise_app_exceptions=False)
        headers = {"authorization": f"Bearer {secret}"}
        self.http = httpx2.AsyncClient(transport=transport, base_url="http://test", headers=headers)
        with anyio.fail_after(10):
            while (await self.http.get("/readyz")).status_code != 200:
                await anyio.sleep(0.01)

    async def _run_server(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        self._server_ended = anyio.Event()
        try:
            async with anyio.create_task_group() as tasks:
                self._server_scope = tasks.cancel_scope
                self.services.templates.start(tasks)
                tasks.start_soon(self.services.reconciler.run)
                task_status.started()
        finally:
            self._server_ended.set()

    async def stop_server(self) -> None:
        with anyio.CancelScope(shield=True):
            self._server_scope.cancel()
            await self._server_ended.wait()
            await self.http.aclose()
            await self._database.close()  # after every task that may hold its connection

    @asynccontextmanager
    async def server(self, name: str) -> AsyncIterator[None]:
        """A control plane over another database beside the same node, instead of the first while the block runs."""
        await self.stop_server()
        await self.start_server(f"sqlite:///{self.folder}/{name}")
        try:
            yield
        finally:
            await self.stop_server()
            await self.start_server()

    def copy_database(self, name: str) -> None:
        """What a backup of this moment would be."""
        with (
            closing(sqlite3.connect(self.folder / "test.db")) as now,
            closing(sqlite3.connect(self.folder / name)) as copy,
        ):
            now.backup(copy)

    async def write_row(self, sandbox: Sandbox) -> None:
        """Over what the database holds of it."""
        async with self.services.events.change() as ledger:
            await sandbox_store.remove(ledger.transaction, sandbox.id)
            await sandbox_store.add(ledger.transaction, sandbox)

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
    """Hands every call to the supervisor of the moment, as the socket does for the real server; without one nobody answers."""

    def __init__(self) -> None:
        self.node: Runner | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self.node, name) if self.node else _nobody_answers


async def _nobody_answers(*_: object, **__: object) -> None:
    raise Unavailable("the node's runner does not answer", retry_after=1)


@asynccontextmanager
async def platform(folder: Path, url: str | None = None) -> AsyncIterator[LocalPlatform]:
    """A platform with the template `base`; all its tasks end with the block. `url`: of a database, else SQLite's."""
    (folder / "run" / "grants").mkdir(parents=True, exist_ok=True)
    async with anyio.create_task_group() as tasks:
        made = LocalPlatform(folder, tasks, url or f"sqlite:///{folder}/test.db")
        if not list((folder / "node" / "templates").glob("*.json")):
            await made.add_template("base")
        await made.start_node()
        await made.start_server()
        try:
            yield made
        finally:
            await made.stop_server()
            tasks.cancel_scope.cancel()
