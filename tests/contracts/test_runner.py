"""The runner's contract: in process, and over its unix socket. Both ends of the socket are the real ones; the host below
is faked, so that every guarantee can be provoked."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from sandkeep.app.daemon import listener
from sandkeep.contracts.runner import PROTOCOL_VERSION, Runner
from sandkeep.domain.errors import (
    Conflict,
    InUse,
    NoCapacity,
    NotFound,
    PauseFailed,
    Superseded,
    Unavailable,
    Unsupported,
)
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import FactKind, OperationRef, SandboxOnNode, TemplateOnNode
from sandkeep.domain.quantities import GIB
from sandkeep.domain.sandbox import Hold, Lifetime, Limits, Persistence, Phase, RuntimeKind, Spec
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
