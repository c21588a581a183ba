"""The runner's contract: in process, and over its unix socket. Both ends of the socket are the real ones; the host below
is faked, so that every guarantee can be provoked."""

import io
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from sandkeep.app.daemon import listener
from sandkeep.contracts.runner import PROTOCOL_VERSION, Runner
from sandkeep.domain.browse import Aspect, FileType, Point
from sandkeep.domain.errors import (
    Busy,
    Conflict,
    DeadlineExceeded,
    InUse,
    InvalidArgument,
    NoCapacity,
    NotFound,
    PauseFailed,
    Superseded,
    Unavailable,
    Unsupported,
)
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import FactKind, OperationRef, SandboxOnNode, SnapshotOnNode, TemplateOnNode
from sandkeep.domain.portable import key_text
from sandkeep.domain.quantities import GIB
from sandkeep.domain.sandbox import Hold, Lifetime, Limits, Persistence, Phase, RuntimeKind, Spec
from sandkeep.domain.snapshot import SnapshotKind
from sandkeep.drivers.runner.remote import remote_runner
from sandkeep.edge.runner.app import runner_app
from sandkeep.testing.platform import LocalPlatform, platform

pytestmark = pytest.mark.anyio


class Case:
    """A runner, and the fakes below it."""

    def __init__(self, runner: Runner, local: LocalPlatform) -> None:
        self.runner = runner
        self.local = local
        self.epoch = 0

    def operation(self) -> OperationRef:
        self.epoch += 1
        return OperationRef(new_id(IdKind.OPERATION), self.epoch)

    async def sandbox(self, persistence: Persistence = Persistence.FULL, **limits: int) -> str:
        template = (await self.runner.templates())[0]
        spec = Spec(template.id, template.name, RuntimeKind.GVISOR, persistence, Limits(**limits))
        asked = SandboxOnNode(new_id(IdKind.SANDBOX), new_id(IdKind.PROJECT), spec)
        await self.runner.create(self.operation(), asked)
        return asked.id


@pytest.fixture(params=["in process", "over a socket"])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    async with platform(tmp_path / "platform") as local:
        if request.param == "in process":
            yield Case(local.node, local)
            return
        socket = str(tmp_path / "runner.sock")
        server = listener(runner_app(local.node), uds=socket)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve)
            while not server.started:
                await anyio.sleep(0.005)
            async with remote_runner(socket) as remote:
                yield Case(remote, local)
            server.should_exit = server.force_exit = True


async def test_it_says_what_it_is(case: Case) -> None:
    node = await case.runner.handshake()
    assert (node.node_id, node.protocol) == ("node-test", PROTOCOL_VERSION)
    assert {runtime.kind for runtime in node.runtimes} == set(RuntimeKind)
    assert (await case.runner.capacity()).slots_free == 1000


async def test_the_same_operation_gives_the_same_outcome(case: Case) -> None:
    sandbox = await case.sandbox()
    pause = case.operation()
    first = await case.runner.pause(pause, sandbox, Hold.DISK, or_disk=False)
    await case.runner.resume(case.operation(), sandbox)
    again = await case.runner.pause(OperationRef(pause.id, case.epoch), sandbox, Hold.DISK, or_disk=False)
    assert first.phase is Phase.PAUSED
    assert again.phase is Phase.RUNNING  # not paused a second time: the outcome of that operation, the state of today


async def test_a_failed_operation_fails_again_with_the_same_error(case: Case) -> None:
    sandbox = await case.sandbox()
    case.local.runtimes[RuntimeKind.GVISOR].fail_next("save", PauseFailed("no room"))
    pause = case.operation()
    for _ in range(2):
        with pytest.raises(PauseFailed, match="no room"):
            await case.runner.pause(pause, sandbox, Hold.DISK, or_disk=False)


async def test_an_old_epoch_is_refused(case: Case) -> None:
    sandbox = await case.sandbox()
    old = case.operation()
    await case.runner.stop(case.operation(), sandbox)
    with pytest.raises(Superseded):
        await case.runner.start(old, sandbox, False)


async def test_delete_works_from_every_phase_and_twice(case: Case) -> None:
    for prepare in ("running", "paused", "held", "stopped"):
        sandbox = await case.sandbox()
        if prepare == "paused":
            await case.runner.pause(case.operation(), sandbox, Hold.DISK, or_disk=False)
        elif prepare == "held":
            await case.runner.pause(case.operation(), sandbox, Hold.MEMORY, or_disk=False)
        elif prepare == "stopped":
            await case.runner.stop(case.operation(), sandbox)
        await case.runner.delete(case.operation(), sandbox)
        await case.runner.delete(case.operation(), sandbox)
        shown = await case.runner.show(sandbox)
        assert shown is not None
        assert shown.phase is Phase.DELETED
    assert (await case.runner.fsck())["findings"] == []
    assert (await case.runner.capacity()).memory_promised == 0


async def test_what_is_not_there(case: Case) -> None:
    nobody = new_id(IdKind.SANDBOX)
    with pytest.raises(NotFound):
        await case.runner.stop(case.operation(), nobody)
    with pytest.raises(NotFound):
        await case.runner.endpoint(nobody)
    assert await case.runner.show(nobody) is None
    assert await case.runner.export_record(nobody) is None


async def test_an_endpoint_needs_a_running_machine(case: Case) -> None:
    sandbox = await case.sandbox()
    endpoint = await case.runner.endpoint(sandbox)
    assert endpoint.kind == "tcp"
    assert endpoint.credential not in repr(endpoint)
    await case.runner.stop(case.operation(), sandbox)
    with pytest.raises(Conflict):
        await case.runner.endpoint(sandbox)


async def test_what_the_runtime_cannot_do_is_refused_with_the_reason(case: Case) -> None:
    template = (await case.runner.templates())[0]
    spec = Spec(template.id, template.name, RuntimeKind.RUNC, Persistence.FULL)
    with pytest.raises(Unsupported, match="cannot save memory"):
        await case.runner.create(case.operation(), SandboxOnNode(new_id(IdKind.SANDBOX), "", spec))


async def test_admission_refuses_at_once_and_says_what_is_free(case: Case) -> None:
    with pytest.raises(NoCapacity) as refused:
        await case.sandbox(memory=1000 * GIB)
    assert refused.value.details["memory_free"] == 4 * case.local.host.memory_total
    assert refused.value.retry_after


async def test_updates_reach_the_machine(case: Case) -> None:
    sandbox = await case.sandbox()
    limits = Limits(cpus=1, memory=2 * GIB, disk=16 * GIB)
    await case.runner.update(case.operation(), sandbox, limits, Lifetime(), {"a": "b"})
    machine = next(iter(case.local.kernels[RuntimeKind.GVISOR].machines.values()))
    assert machine.limits == limits
    kept = await case.runner.export_record(sandbox)
    assert kept is not None
    assert (kept.spec.limits, kept.spec.labels) == (limits, {"a": "b"})


async def test_a_template_from_a_stopped_sandbox(case: Case) -> None:
    sandbox = await case.sandbox(Persistence.VOLUME)
    wanted = TemplateOnNode(new_id(IdKind.TEMPLATE), "mine", 1.0, 0)
    with pytest.raises(Conflict):
        await case.runner.make_template(case.operation(), sandbox, wanted)
    await case.runner.stop(case.operation(), sandbox)
    made = await case.runner.make_template(case.operation(), sandbox, wanted)
    assert made.name == "mine"
    used = (await case.runner.export_record(sandbox)) or pytest.fail("it has a record")
    with pytest.raises(InUse):
        await case.runner.delete_template(case.operation(), used.spec.template)
    await case.runner.delete_template(case.operation(), made.id)
    assert made.id not in {template.id for template in await case.runner.templates()}


async def test_facts_come_in_order_until_they_are_acknowledged(case: Case) -> None:
    for _ in range(3):
        await case.sandbox(Persistence.VOLUME)
    runtime = case.local.runtimes[RuntimeKind.GVISOR]
    for machine in list(case.local.kernels[RuntimeKind.GVISOR].machines):
        runtime.die(machine)
    seen = []
    with anyio.fail_after(10):
        async for fact in case.runner.watch(0):
            seen.append(fact)
            if len(seen) == 3:
                break
    assert [fact.seq for fact in seen] == sorted({fact.seq for fact in seen})
    assert {fact.kind for fact in seen} == {FactKind.MACHINE_EXITED}


async def test_a_socket_without_a_runner_is_said_to_be_so(tmp_path: Path) -> None:
    async with remote_runner(str(tmp_path / "nobody.sock")) as remote:
        with pytest.raises(Unavailable):
            await remote.handshake()


async def looked_at(case: Case) -> tuple[Point, Path]:
    """A snapshot of a sandbox, and where its disk is."""
    sandbox = await case.sandbox()
    root = case.local.disks.path(sandbox)
    (root / "folder").mkdir()
    for number in range(5):
        (root / f"folder/{number}").write_text(f"number {number}")
    (root / "folder/link").symlink_to("/folder/1")
    (root / "out").symlink_to("../../../../../../../../../../etc/passwd")
    (root / "large").write_bytes(b"x" * (3 << 20))
    Path(os.fsdecode(os.fsencode(root) + b"/\xff")).write_text("bytes")
    snapshot = SnapshotOnNode(new_id(IdKind.SNAPSHOT), sandbox, SnapshotKind.DISK, 1.0)
    await case.runner.snapshot(case.operation(), sandbox, snapshot, False)
    return Point(sandbox, snapshot.id), root


async def test_a_disk_is_looked_at_as_it_was_and_as_it_is(case: Case) -> None:
    then, root = await looked_at(case)
    (root / "folder/1").write_text("later")
    now = Point(then.sandbox_id)
    names = [one.name for one in await case.runner.list_folder(then, "/folder", "", 3)]
    names += [one.name for one in await case.runner.list_folder(then, "/folder", names[-1], 100)]
    assert names == ["0", "1", "2", "3", "4", "link"]
    link = await case.runner.stat_path(then, "/folder/link", False)
    assert (link.type, link.target) == (FileType.SYMLINK, "/folder/1")
    assert (await case.runner.stat_path(then, "/folder/link", True)).size == len("number 1")
    for point, text in ((then, b"number 1"), (now, b"later")):
        assert b"".join([chunk async for chunk in case.runner.read_file(point, "/folder/link")]) == text
    assert b"".join([chunk async for chunk in case.runner.read_file(then, "/\xff")]) == b"bytes"
    assert len(b"".join([chunk async for chunk in case.runner.read_file(then, "/large")])) == 3 << 20
    tree = b"".join([chunk async for chunk in case.runner.read_tree(then, "/folder", "named", False, ("3",))])
    with tarfile.open(fileobj=io.BytesIO(tree)) as tar:
        assert tar.getnames() == ["named", *[f"named/{name}" for name in ("0", "1", "2", "4", "link")]]
    found = await case.runner.diff(then, now, 10)
    assert [(change.path, change.what) for change in found.files] == [("folder/1", (Aspect.CONTENT,))]


@pytest.mark.parametrize("path", ["/out", "/no", "/folder/0/below", "/../../etc/passwd"])
async def test_what_is_not_on_the_disk_is_not_found(case: Case, path: str) -> None:
    then, _ = await looked_at(case)
    with pytest.raises(NotFound):
        await case.runner.stat_path(then, path, True)
    with pytest.raises(NotFound):
        await case.runner.list_folder(then, path, "", 10)
    for stream in (case.runner.read_file(then, path), case.runner.read_tree(then, path, ".", True, ())):
        with pytest.raises(NotFound):
            await anext(stream)


async def test_points_that_are_not_there(case: Case) -> None:
    then, _ = await looked_at(case)
    other = await case.sandbox()
    for point in (Point(other, then.snapshot_id), Point(then.sandbox_id, new_id(IdKind.SNAPSHOT)), Point("nobody")):
        with pytest.raises(NotFound):
            await case.runner.list_folder(point, "/", "", 10)
        with pytest.raises(NotFound):
            await anext(case.runner.read_file(point, "/large"))
        with pytest.raises(NotFound):
            await case.runner.diff(then, point, 10)
    with pytest.raises(InvalidArgument):
        await anext(case.runner.read_file(then, "/folder"))
    with pytest.raises(InvalidArgument):
        await case.runner.list_folder(then, "/large", "", 10)


async def drained(stream: AsyncIterator[bytes]) -> None:
    async for _ in stream:
        pass


async def test_a_stream_says_that_its_snapshot_was_deleted(case: Case) -> None:
    then, _ = await looked_at(case)
    assert then.snapshot_id is not None
    stream = case.runner.read_file(then, "/large")
    await anext(stream)
    await case.runner.delete_snapshot(case.operation(), then.sandbox_id, then.snapshot_id)
    readings = case.local.node._browser.readings
    await readings.look()
    with pytest.raises(NotFound, match="deleted"):
        await drained(stream)
    with anyio.fail_after(5):
        while len(readings):
            await anyio.sleep(0.01)


async def test_a_stream_that_nobody_takes_ends(case: Case) -> None:
    then, root = await looked_at(case)
    with (root / "longer").open("wb") as file:
        file.truncate(1 << 26)
    stream = case.runner.read_file(Point(then.sandbox_id), "/longer")
    await anext(stream)
    readings = case.local.node._browser.readings
    await readings.look()
    await anext(stream)

    async def slowly() -> None:
        while True:
            case.local.clock.advance(600)
            await readings.look()
            await anext(stream)

    with pytest.raises(DeadlineExceeded):
        await slowly()


async def test_so_many_streams_and_no_more(case: Case) -> None:
    then, _ = await looked_at(case)
    streams = [case.runner.read_file(then, "/large") for _ in range(32)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(Busy):
        await anext(case.runner.read_file(then, "/large"))
    for stream in streams:
        await stream.aclose()
    readings = case.local.node._browser.readings
    with anyio.fail_after(5):
        while len(readings):
            await anyio.sleep(0.01)
    assert await anext(case.runner.read_file(then, "/folder/0")) == b"number 0"


async def _once(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_a_sandbox_goes_into_a_file_and_comes_out_of_one(case: Case) -> None:
    sandbox, key = await case.sandbox(), key_text(bytes(range(32)))
    with pytest.raises(Conflict):
        async for _ in case.runner.export_sandbox(sandbox, key):
            pass
    await case.runner.pause(case.operation(), sandbox, Hold.DISK, False)
    data = b"".join([chunk async for chunk in case.runner.export_sandbox(sandbox, key)])
    carried = await case.runner.look_portable(key, False, _once(data))
    assert (carried.source, carried.memory, carried.spec.persistence) == (sandbox, True, Persistence.FULL)
    operation = case.operation()
    asked = SandboxOnNode(new_id(IdKind.SANDBOX), new_id(IdKind.PROJECT), carried.spec)
    half = len(data) // 2
    observed = await case.runner.import_sandbox(operation, asked, key, False, _once(data[:half], data[half:]))
    assert (observed.phase, observed.hold) == (Phase.PAUSED, Hold.DISK)
    again = await case.runner.import_sandbox(operation, asked, key, False, _once(data))
    assert again == observed, "the same operation has the same outcome"
    with pytest.raises(NotFound):
        async for _ in case.runner.export_sandbox(new_id(IdKind.SANDBOX), key):
            pass


async def test_a_file_that_breaks_off_leaves_nothing(case: Case) -> None:
    sandbox, key = await case.sandbox(Persistence.VOLUME), key_text(bytes(range(32)))
    await case.runner.stop(case.operation(), sandbox)
    data = b"".join([chunk async for chunk in case.runner.export_sandbox(sandbox, key)])
    carried = await case.runner.look_portable(key, False, _once(data))
    asked = SandboxOnNode(new_id(IdKind.SANDBOX), new_id(IdKind.PROJECT), carried.spec)

    async def broken() -> AsyncIterator[bytes]:
        yield data[:-20]
        raise DeadlineExceeded("nobody sends any more")

    with pytest.raises(DeadlineExceeded):
        await case.runner.import_sandbox(case.operation(), asked, key, False, broken())
    with anyio.fail_after(10):
        while asked.id in (await case.local.disks.contents()).disks or case.local.parts.journal.entries():
            await anyio.sleep(0.01)
    assert await case.runner.show(asked.id) is None
    damaged = data[:-20] + bytes(15) + data[-5:]
    with pytest.raises(InvalidArgument):
        await case.runner.import_sandbox(case.operation(), asked, key, False, _once(damaged, *[bytes(1 << 20)] * 20))
    assert await case.runner.show(asked.id) is None
    observed = await case.runner.import_sandbox(case.operation(), asked, key, False, _once(data))
    assert observed.phase is Phase.STOPPED
