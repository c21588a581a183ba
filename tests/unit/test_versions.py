"""Versions that meet: of the runner's protocol, of the data on the node, and of what a memory image needs."""

import json
import os
import shutil
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from sandkeep.app import inspection
from sandkeep.app.daemon import listener
from sandkeep.app.settings import Settings
from sandkeep.contracts import protocol
from sandkeep.contracts.protocol import Spoken
from sandkeep.contracts.runner import NodeInfo
from sandkeep.contracts.runtime import MemoryImage
from sandkeep.domain.errors import Conflict, Unavailable, Unsupported
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import OperationRef, SandboxOnNode
from sandkeep.domain.sandbox import Hold, Persistence, Phase, RuntimeKind, Spec
from sandkeep.drivers.runner.remote import remote_runner
from sandkeep.drivers.runtime.runsc import build, driver
from sandkeep.drivers.runtime.runsc.builds import Builds, identity
from sandkeep.edge.runner import app
from sandkeep.engine import writer
from sandkeep.engine.records import Record
from sandkeep.testing.platform import LocalPlatform, platform


@pytest.mark.parametrize(
    ("server", "runner", "fit"),
    [
        ((1, 1), (1, 1), True),
        ((1, 2), (2, 3), True),
        ((2, 3), (1, 2), True),
        ((1, 5), (3, 3), True),
        ((2, 2), (1, 1), False),
        ((1, 1), (2, 2), False),
        ((1, 2), (3, 4), False),
        ((0, 0), (1, 1), False),
    ],
)
def test_two_ranges_fit_when_they_have_a_version_in_common(
    server: tuple[int, int], runner: tuple[int, int], fit: bool
) -> None:
    ours, theirs = Spoken(*server, "0.1.0"), Spoken(*runner, "0.9.0")
    if fit:
        protocol.check(ours, theirs)
        return
    with pytest.raises(Unavailable, match=r"server 0\.1\.0 speaks version .*runner 0\.9\.0 speaks") as refused:
        protocol.check(ours, theirs)
    assert refused.value.hint == "sandkeep up restarts both with the version that is installed"


@pytest.mark.parametrize(
    ("header", "spoken"),
    [
        (None, Spoken(1, 1)),
        ("1-2 0.2.0", Spoken(1, 2, "0.2.0")),
        ("3-3", Spoken(3, 3)),
        ("", Spoken(0, 0, "unknown")),
        ("1", Spoken(0, 0, "unknown")),
        ("-1-2", Spoken(0, 0, "unknown")),
        ("one-two", Spoken(0, 0, "unknown")),
    ],
)
def test_what_a_header_says(header: str | None, spoken: Spoken) -> None:
    assert protocol.parse(header) == spoken
    if spoken.oldest:
        assert protocol.parse(spoken.header()) == spoken


@pytest.mark.parametrize(
    ("mark", "refused"),
    [
        (None, False),
        ({"format": 1, "version": "0.1.0"}, False),
        ({"format": 1, "version": "0.0.9"}, False),
        ({"format": 1, "version": "0.2.0"}, True),
        ({"format": 1, "version": "0.10.0"}, True),
        ({"format": 1, "version": "1.0"}, True),
        ({"format": writer.FORMAT + 1, "version": "0.1.0"}, True),
        ({"format": "two", "version": "0.1.0"}, True),
    ],
)
def test_data_of_a_newer_version_is_refused_and_left_alone(
    tmp_path: Path, mark: dict[str, object] | None, refused: bool
) -> None:
    path = tmp_path / "format"
    if mark is not None:
        path.write_text(json.dumps(mark))
    if refused:
        for attempt in (writer.refuse_newer, writer.mark):
            with pytest.raises(Conflict, match=f"written by Sandkeep {mark and mark['version']}"):
                attempt(tmp_path, "0.1.0")
        assert json.loads(path.read_text()) == mark
        return
    writer.refuse_newer(tmp_path, "0.1.0")
    writer.mark(tmp_path, "0.1.0")
    assert json.loads(path.read_text()) == {"format": writer.FORMAT, "version": "0.1.0"}
    with pytest.raises(Conflict, match=r"newer than this 0\.0\.9"):
        writer.mark(tmp_path, "0.0.9")


@pytest.mark.anyio
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_nothing_of_a_newer_version_is_repaired(tmp_path: Path) -> None:
    settings = Settings(instance="versions", data_folder=tmp_path / "data", run_folder=tmp_path / "run")
    (tmp_path / "run").mkdir()
    writer.mark(settings.node_folder, "99.0")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Conflict, match=r"written by Sandkeep 99\.0"):
        await inspection.repair(settings)
    assert sorted(tmp_path.rglob("*")) == before


def _gvisor(tmp_path: Path, content: bytes) -> driver.GvisorRuntime:
    """With this binary installed, as if it had been opened."""
    binary = tmp_path / "runsc"
    binary.write_bytes(content)
    runtime = driver.GvisorRuntime(tmp_path / "run", binary, "sandkeep-none", builds=tmp_path / "builds")
    runtime._build = build.probe(binary, "20240729.0", "ptrace")
    runtime._known = {identity(binary): runtime._build}
    return runtime


def test_an_image_is_restored_by_the_build_that_saved_it(tmp_path: Path) -> None:
    old = _gvisor(tmp_path, b"old")
    assert old._build
    image = MemoryImage((), old._build.requires())
    kept = Builds(tmp_path / "builds").keep(tmp_path / "runsc", old._build.sha256)
    assert kept.read_bytes() == b"old"
    assert old._fitting(image) == tmp_path / "runsc"
    new = _gvisor(tmp_path, b"newer")
    assert new._fitting(image) == kept
    new.check_image(image)
    with pytest.raises(Unsupported, match="set of processor features"):
        new.check_image(replace(image, requires={**image.requires, "cpu": "other"}))


def test_an_image_whose_build_is_gone_is_refused(tmp_path: Path) -> None:
    old = _gvisor(tmp_path, b"old")
    assert old._build
    image = MemoryImage((), old._build.requires())
    (tmp_path / "runsc").write_bytes(b"replaced while the runner runs")
    with pytest.raises(Unsupported, match="was replaced"):
        old.check_image(image)
    with pytest.raises(Unsupported, match="gVisor build"):
        _gvisor(tmp_path, b"newer").check_image(image)


@pytest.mark.anyio
async def test_builds_that_no_image_needs_go(tmp_path: Path) -> None:
    runtime, builds = _gvisor(tmp_path, b"own"), Builds(tmp_path / "builds")
    assert runtime._build
    for name in ("needed", "done", runtime._build.sha256):
        builds.keep(tmp_path / "runsc", name)
    await runtime.keep_builds([{"sha256": "needed"}])
    assert {path.name for path in (tmp_path / "builds").iterdir()} == {"needed", runtime._build.sha256}


def test_first_pauses_that_come_together_put_one_build_aside(tmp_path: Path) -> None:
    (tmp_path / "runsc").write_bytes(os.urandom(8 << 20))
    for attempt in range(5):
        builds, together = Builds(tmp_path / f"builds-{attempt}"), threading.Barrier(8)

        def keep(builds: Builds = builds, together: threading.Barrier = together) -> Path:
            together.wait()
            return builds.keep(tmp_path / "runsc", "sum")

        with ThreadPoolExecutor(8) as pool:
            (kept,) = {future.result() for future in [pool.submit(keep) for _ in range(8)]}
        assert kept.read_bytes() == (tmp_path / "runsc").read_bytes()
        assert [path.name for path in kept.parent.iterdir()] == [kept.name]


class Node:
    """A node of fakes with one sandbox."""

    def __init__(self, local: LocalPlatform) -> None:
        self.local = local
        self.epoch = 0
        self.id = new_id(IdKind.SANDBOX)

    def operation(self) -> OperationRef:
        self.epoch += 1
        return OperationRef(new_id(IdKind.OPERATION), self.epoch)

    async def create(self) -> None:
        template = (await self.local.node.templates())[0]
        spec = Spec(template.id, template.name, RuntimeKind.GVISOR, Persistence.FULL)
        await self.local.node.create(self.operation(), SandboxOnNode(self.id, new_id(IdKind.PROJECT), spec))

    async def upgrade(self, agent: str) -> None:
        self.local.agent = agent
        await self.local.restart_node()

    @property
    def record(self) -> Record:
        return self.local.parts.records.sandboxes[self.id]

    @property
    def mounted(self) -> str:
        machines = self.local.kernels[RuntimeKind.GVISOR].machines
        return machines[self.record.machine or ""].plan.agent.name

    @property
    def installed(self) -> set[str]:
        return {path.name for path in (self.local.folder / "agents").iterdir()}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with platform(tmp_path) as local:
        made = Node(local)
        await made.create()
        yield made


@pytest.mark.anyio
async def test_a_machine_keeps_its_agent_until_it_boots_anew(node: Node) -> None:
    local = node.local
    await node.upgrade("newer")
    assert (node.mounted, node.record.agent, node.installed) == ("fake", "fake", {"fake", "newer"})
    await local.node.pause(node.operation(), node.id, Hold.DISK, False)
    (local.folder / "agents" / "half removed").mkdir()
    await node.upgrade("newest")  # what nobody was booted with goes
    assert node.installed == {"fake", "newest"}
    await local.node.resume(node.operation(), node.id)
    assert (node.mounted, node.record.agent) == ("fake", "fake")
    await local.node.stop(node.operation(), node.id)
    await local.node.start(node.operation(), node.id, False)
    assert (node.mounted, node.record.agent) == ("newest", "newest")
    await node.upgrade("newest")
    assert node.installed == {"newest"}
    assert (await local.node.fsck())["findings"] == []


@pytest.mark.anyio
async def test_a_resume_without_its_agent_is_refused_and_nothing_is_touched(node: Node) -> None:
    local = node.local
    await local.node.pause(node.operation(), node.id, Hold.DISK, False)
    await node.upgrade("newer")
    shutil.rmtree(local.folder / "agents" / "fake")
    before = node.record.generation
    (finding,) = (await local.node.fsck())["findings"]
    assert (finding["kind"], finding["subject"]) == ("generation.unfitting", node.id)
    with pytest.raises(Unsupported, match="agent that this memory was saved with"):
        await local.node.resume(node.operation(), node.id)
    assert (node.record.phase, node.record.generation) == (Phase.PAUSED, before)
    await local.node.stop(node.operation(), node.id)
    await local.node.start(node.operation(), node.id, False)
    assert node.mounted == "newer"
    assert (await local.node.fsck())["findings"] == []


@pytest.mark.anyio
async def test_nothing_goes_while_a_record_cannot_be_read(node: Node) -> None:
    await node.local.node.pause(node.operation(), node.id, Hold.DISK, False)
    (node.local.folder / "node" / "sandboxes" / f"{node.id}.json").write_text("{")
    await node.upgrade("newer")
    assert node.installed == {"fake", "newer"}


@pytest.mark.anyio
@pytest.mark.parametrize("paused", [False, True])
async def test_records_of_versions_that_named_no_agent(node: Node, paused: bool) -> None:
    local = node.local
    if paused:
        await local.node.pause(node.operation(), node.id, Hold.DISK, False)
    local.parts.records.save(replace(node.record, agent=""))
    generation = node.record.generation
    made = generation.created_at if generation else local.clock.now()
    for name, age in (("before", 100.0), ("fake", 10.0), ("after", -10.0)):
        path = local.folder / "agents" / name / "agent"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (made - age, made - age))
    await node.upgrade("newer")
    assert node.record.agent == "fake"
    assert node.installed == {"fake", "newer"}


@pytest.mark.anyio
async def test_a_server_and_a_runner_that_do_not_fit_say_so_at_both_ends(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(app, "log", lambda event, _level, **fields: logged.append(f"{event}: {fields['error']}"))
    socket = str(tmp_path / "runner.sock")
    server = listener(app.runner_app(node.local.node, "0.1.0", 1, 2), uds=socket)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve)
        while not server.started:
            await anyio.sleep(0.005)
        async with remote_runner(socket, "0.2.0", 2, 3) as fits:
            assert (await fits.handshake()).node_id == "node-test"
        async with remote_runner(socket, "0.9.0", 3, 4) as newer:
            for _ in range(2):
                with pytest.raises(Unavailable, match="speaks version 3 to 4") as refused:
                    await newer.delete(node.operation(), node.id)
        assert logged == [f"server.refused: {refused.value.message}"]
        assert (await node.local.node.show(node.id)) is not None
        server.should_exit = server.force_exit = True


class _Newer:
    """The runner of a version that speaks nothing of this server's."""

    async def handshake(self) -> NodeInfo:
        protocol.check(Spoken(1, 1, "0.1.0"), Spoken(8, 9, "0.9.0"))
        raise AssertionError


@pytest.mark.anyio
async def test_a_server_waits_for_a_runner_that_fits_and_says_why(node: Node) -> None:
    local = node.local
    await local.kill_node()
    local.runner.node = _Newer()  # type: ignore[assignment]
    with anyio.fail_after(10):
        while (answer := await local.http.get("/readyz")).status_code == 200 or "speaks" not in answer.text:
            await anyio.sleep(0.01)
    assert answer.status_code == 503
    assert "server 0.1.0 speaks version 1 of the runner's protocol, runner 0.9.0 speaks 8 to 9" in answer.text
    await local.start_node()
    with anyio.fail_after(10):
        while (await local.http.get("/readyz")).status_code != 200:
            await anyio.sleep(0.01)
    assert node.record.phase is Phase.RUNNING
