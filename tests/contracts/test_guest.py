"""The guest's contract against the real agent over TCP, and against the fake."""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from tests.agent.agent_process import Agent

from sandkeep.app.agents import shipped_agent
from sandkeep.contracts.guest import AGENT_PROTOCOLS, ExecRequest, Guest, GuestInit, GuestResume
from sandkeep.domain.errors import GuestError, GuestUnreachable, InvalidArgument
from sandkeep.domain.node import Endpoint
from sandkeep.drivers.fake.guest import FakeGuest
from sandkeep.drivers.guest.agent import AgentGuest

pytestmark = pytest.mark.anyio
TOKEN = "token-of-the-guest-contract"
VALUES = GuestInit("sbx_contract", "contract", {"GREETING": "hello"}, 0.0, (), 1 << 30, oom_guard=False)
RESUME = GuestResume("contract", "gen_1", "resume")


class Case:
    def __init__(self, guest: Guest, endpoint: Endpoint, nobody: Endpoint) -> None:
        self.guest = guest
        self.endpoint = endpoint
        self.nobody = nobody


@pytest.fixture(params=["agent", "fake"])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    nobody = Endpoint("tcp", "127.0.0.1", 9, TOKEN)
    if request.param == "fake":
        guest = FakeGuest(lambda address: address == "192.0.2.9")
        made = Case(guest, Endpoint("tcp", "192.0.2.9", 1, TOKEN), nobody)
        await guest.init(made.endpoint, VALUES)
        yield made
        return
    if os.geteuid() != 0:
        pytest.skip("needs root")
    agent = Agent(str(shipped_agent()), tmp_path)
    try:
        real = AgentGuest()
        endpoint = Endpoint("tcp", "127.0.0.1", agent.port, TOKEN)
        await real.wait_ready(endpoint, 10)
        await real.init(endpoint, VALUES)
        yield Case(real, endpoint, nobody)
        await real.hang_up("127.0.0.1")
    finally:
        agent.stop()


async def test_a_command_has_its_code_and_output(case: Case) -> None:
    done = await case.guest.exec(case.endpoint, ExecRequest(("echo", "one", "two")))
    assert (done.exit_code, done.stdout, done.signal) == (0, b"one two\n", None)
    assert (await case.guest.exec(case.endpoint, ExecRequest(("/bin/bash", "-c", "exit 7")))).exit_code == 7


async def test_stdin_is_given_whole(case: Case) -> None:
    data = bytes(range(256)) * 40
    assert (await case.guest.exec(case.endpoint, ExecRequest(("cat",), stdin=data))).stdout == data


async def test_a_timeout_kills_and_says_so(case: Case) -> None:
    with anyio.fail_after(10):
        done = await case.guest.exec(case.endpoint, ExecRequest(("sleep", "60"), timeout=0.2))
    assert (done.timed_out, done.exit_code) == (True, 137)


async def test_a_command_that_cannot_start_is_the_callers_error(case: Case) -> None:
    with pytest.raises(InvalidArgument):
        await case.guest.exec(case.endpoint, ExecRequest(("no-such-command",)))


async def test_an_agent_that_is_not_there_is_unreachable_within_the_deadline(case: Case) -> None:
    with anyio.fail_after(5), pytest.raises(GuestUnreachable):
        await case.guest.wait_ready(case.nobody, 0.5)
    with anyio.fail_after(8), pytest.raises(GuestUnreachable):
        await case.guest.exec(case.nobody, ExecRequest(("true",)))


async def test_quiesce_and_resume(case: Case) -> None:
    await case.guest.flush(case.endpoint, 5)
    assert await case.guest.quiesce(case.endpoint, 5) is not None
    await case.guest.hang_up(case.endpoint.address)
    await case.guest.resumed(case.endpoint, RESUME, time.time)
    assert (await case.guest.exec(case.endpoint, ExecRequest(("echo", "on")))).stdout == b"on\n"


async def test_a_clock_inside_that_is_wrong_fails_the_resume(case: Case) -> None:
    if isinstance(case.guest, FakeGuest):
        pytest.skip("the fake has no clock")
    for wrong in (-60, 60):
        with pytest.raises(GuestError, match="clock inside"):
            await case.guest.resumed(case.endpoint, RESUME, lambda wrong=wrong: time.time() + wrong)  # type: ignore[misc]
    was_set_meanwhile = iter([time.time() + 60, time.time()])
    await case.guest.resumed(case.endpoint, RESUME, lambda: next(was_set_meanwhile))


async def test_a_request_passes_through_both_ways(case: Case) -> None:
    async def body() -> AsyncIterator[bytes]:
        for part in (b"kept ", b"in ", b"order"):
            yield part

    headers = [(b"content-type", b"application/octet-stream")]
    target = "/files?path=/home/user/passed&username=root"
    async with case.guest.request(case.endpoint, "POST", target, headers, body()) as answer:
        assert answer.status == 200
        assert b"".join([chunk async for chunk in answer.body])
    if isinstance(case.guest, AgentGuest):
        async with case.guest.request(case.endpoint, "GET", target, [], None) as answer:
            assert b"".join([chunk async for chunk in answer.body]) == b"kept in order"


async def test_requests_side_by_side(case: Case) -> None:
    outputs: set[bytes] = set()

    async def one(number: int) -> None:
        outputs.add((await case.guest.exec(case.endpoint, ExecRequest(("echo", str(number))))).stdout)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(one, number)
    assert outputs == {b"%d\n" % number for number in range(20)}


async def test_the_credential_is_needed(case: Case) -> None:
    if isinstance(case.guest, FakeGuest):
        assert TOKEN not in repr(case.endpoint)
        return
    stranger = Endpoint("tcp", case.endpoint.address, case.endpoint.port, "somebody else's token")
    async with AgentGuest().request(stranger, "GET", "/envs", [], None) as answer:
        assert answer.status == 401
        assert b"hello" not in b"".join([chunk async for chunk in answer.body])


@pytest.mark.parametrize(
    ("said", "known"), [(None, True), (b"1", True), (b"2", False), (b"0", False), (b"", False), (b"9" * 5000, False)]
)
async def test_an_agent_of_another_protocol_is_asked_for_nothing_more(said: bytes | None, known: bool) -> None:
    async def answer(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            header = b"" if said is None else b"Sandkeep-Agent-Protocol: " + said + b"\r\n"
            await stream.send(b"HTTP/1.1 204 No Content\r\n" + header + b"\r\n")

    guest = AgentGuest()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        port = listener.extra(SocketAttribute.local_port)
        endpoint = Endpoint("tcp", "127.0.0.1", port, TOKEN)
        if known:
            await guest.wait_ready(endpoint, 10)
            await guest.init(endpoint, VALUES)
        else:
            with anyio.fail_after(10), pytest.raises(GuestError, match="of its protocol"):
                await guest.wait_ready(endpoint, 30)
            with pytest.raises(GuestError, match="of its protocol") as refused:
                await guest.init(endpoint, VALUES)
            assert "stop it and start it" in (refused.value.hint or "")
        await guest.hang_up("127.0.0.1")
        tasks.cancel_scope.cancel()


async def test_the_agent_tells_its_protocol(case: Case) -> None:
    if not isinstance(case.guest, AgentGuest):
        return
    async with case.guest.request(case.endpoint, "GET", "/health", [], None) as answer:
        said = next(value for name, value in answer.headers if name.lower() == b"sandkeep-agent-protocol")
        assert int(said) in AGENT_PROTOCOLS
        assert not [chunk async for chunk in answer.body]
