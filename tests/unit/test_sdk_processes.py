"""Processes and terminals: streams that go on from their offset, input, signals, ends."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from tests.support.fake_api import KEY, FakeApi, Program, serve

from sandkeep import AsyncClient, AsyncSandbox, Client, Sandbox
from sandkeep.sdk import Dropped, Output, errors

LINES = [("stdout", b"one\n"), ("stderr", b"two\n"), ("stdout", b"three\n"), ("stdout", b"four\n")]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serve(FakeApi()) as running:
        running.add("dev")
        yield running


@pytest.fixture
def sandbox(api: FakeApi) -> Iterator[Sandbox]:
    with Client(api.url, KEY, retry_for=3.0) as client:
        yield Sandbox.get("dev", client=client)


def test_output_in_order_and_the_end(api: FakeApi, sandbox: Sandbox) -> None:
    api.programs = [Program(LINES, end={"exitCode": 3, "exited": True, "status": "exit status 3"})]
    process = sandbox.start_process("make", user="root", cwd="/w", env={"A": "1"}, timeout="2s", stdin=True)
    assert list(process) == [
        Output("stdout", b"one\n", 0), Output("stderr", b"two\n", 4), Output("stdout", b"three\n", 8),
        Output("stdout", b"four\n", 14),
    ]  # fmt: skip
    assert process.wait().exit_code == 3
    assert (process.pid, process.offset) == (100, 19)
    message = api.processes[next(iter(api.processes))].message
    assert message["process"] == {"cmd": "/bin/bash", "args": ["-l", "-c", "make"], "envs": {"A": "1"}, "cwd": "/w"}
    assert (message["timeoutMs"], message["stdin"], message["detached"]) == (2000, True, True)
    assert next(iter(api.processes.values())).user == "root"


@pytest.mark.parametrize("cuts", [[0], [1], [2, 1], [0, 0, 1, 1, 1]])
def test_a_cut_stream_goes_on_where_it_was(api: FakeApi, sandbox: Sandbox, cuts: list[int]) -> None:
    api.programs, api.cut_after = [Program(LINES)], cuts
    events = list(sandbox.start_process(["x"]))
    assert b"".join(event.data for event in events if isinstance(event, Output)) == b"one\ntwo\nthree\nfour\n"
    assert all(isinstance(event, Output) for event in events)


def test_a_start_whose_answer_was_lost_is_not_started_again(api: FakeApi, sandbox: Sandbox) -> None:
    api.programs = [Program(LINES), Program(LINES)]
    api.drop()
    assert sandbox.start_process(["x"]).communicate().stdout == "one\nthree\nfour\n"
    assert len(api.processes) == 1
    api.drop(after=False)
    assert sandbox.start_process(["x"]).wait().ok
    assert len(api.processes) == 2


def test_a_paused_sandbox_is_waited_for_and_not_woken(api: FakeApi, sandbox: Sandbox) -> None:
    gate = threading.Event()
    api.programs, api.cut_after = [Program(LINES, gate=gate)], [2]
    view = api.sandboxes[sandbox.id]
    process = sandbox.start_process(["x"])
    view["phase"] = "paused"

    def later() -> None:
        time.sleep(0.5)
        assert view["phase"] == "paused"
        view["phase"] = "running"
        gate.set()

    thread = threading.Thread(target=later)
    thread.start()
    assert process.communicate().stdout == "one\nthree\nfour\n"
    thread.join()


def test_a_stopped_sandbox_has_lost_it(api: FakeApi, sandbox: Sandbox) -> None:
    api.programs, api.cut_after = [Program(LINES)], [1]
    process = sandbox.start_process(["x"])
    api.sandboxes[sandbox.id]["phase"] = "stopped"
    with pytest.raises(errors.ProcessLost, match="stopped"):
        list(process)


def test_attaching_again_has_a_deadline(api: FakeApi, sandbox: Sandbox) -> None:
    api.programs, api.cut_after = [Program(LINES)], [1]
    process = sandbox.start_process(["x"], resume_within=0.3)
    api.sandboxes[sandbox.id]["phase"] = "paused"
    with pytest.raises(errors.StreamLost) as caught:
        list(process)
    assert caught.value.details == {"pid": 100, "offset": 4}


def test_detach_and_attach(api: FakeApi, sandbox: Sandbox) -> None:
    gate = threading.Event()
    api.programs = [Program(LINES, gate=gate)]
    process = sandbox.start_process(["x"])
    first = next(iter(process))
    assert isinstance(first, Output)
    process.detach()
    assert list(process) == []
    with pytest.raises(errors.Conflict):
        process.wait()
    gate.set()
    again = sandbox.attach(process.pid, offset=process.offset)
    assert again.communicate().stdout_bytes == b"three\nfour\n"
    with pytest.raises(errors.NotFound):
        sandbox.attach(4711)
    (listed,) = sandbox.processes()
    assert (listed.pid, listed.command, listed.offset) == (100, ("x",), 19)


def test_input_signals_and_streams(api: FakeApi, sandbox: Sandbox) -> None:
    api.programs = [
        Program([], gate=threading.Event(), echo=True),
        Program(LINES, gate=threading.Event()),
        Program(LINES),
    ]
    data = bytes(range(256)) * 10000
    assert sandbox.start_process(["cat"], stdin=True).communicate(data).stdout_bytes == data
    process = sandbox.start_process(["sleep"])
    process.signal("int")
    process.signal(15, group=True)
    process.kill()
    result = process.wait()
    assert (result.exit_code, result.signal, result.ok) == (137, 9, False)
    assert next(p for p in api.processes.values() if p.pid == process.pid).signals == [
        "SIGNAL_SIGINT", 15, "SIGNAL_SIGKILL",
    ]  # fmt: skip
    assert list(sandbox.start_process(["x"]).stdout) == [b"one\n", b"three\n", b"four\n"]


def test_a_process_whose_input_breaks_is_killed(api: FakeApi, sandbox: Sandbox) -> None:
    api.programs = [Program([], gate=threading.Event())]
    process = sandbox.start_process(["cat"], stdin=True)
    api.fail(500, "internal")
    with pytest.raises(errors.Internal):
        process.communicate(b"x")
    assert next(iter(api.processes.values())).signals == ["SIGNAL_SIGKILL"]


def test_a_timeout_is_a_result(api: FakeApi, sandbox: Sandbox) -> None:
    api.programs = [Program(LINES, end={"timeout": True})]
    result = sandbox.start_process(["x"]).wait()
    assert (result.exit_code, result.timed_out) == (137, True)


def test_what_an_agent_may_send_does_no_harm(api: FakeApi, sandbox: Sandbox) -> None:
    for end in ({"exitCode": "x"}, {"exitCode": None}):
        api.programs = [Program([], end=end)]
        with pytest.raises(errors.GuestError):
            sandbox.start_process(["x"]).wait()


def test_terminals(api: FakeApi, sandbox: Sandbox) -> None:
    terminal = sandbox.open_terminal(["bash"], columns=100, rows=30, user="root", env={"A": "1"})
    output = iter(terminal)
    assert next(output) == b"$ "
    terminal.resize(120, 40)
    terminal.write(b"ls\r")
    assert next(output) == b"ls\r"
    terminal.write(b"exit\r")
    assert list(output) == [b"exit\r"]
    assert terminal.result is not None
    assert (terminal.result.exit_code, terminal.pid) == (5, 7)
    assert api.terminal["resized"] == [{"cols": 120, "rows": 40}]
    assert dict(api.terminal["query"]) == {
        "cols": "100", "rows": "30", "user": "root", "command": "bash", "env": "A=1",
    }  # fmt: skip


def test_a_broken_terminal_is_attached_again(api: FakeApi, sandbox: Sandbox) -> None:
    api.terminal_close = [1012]
    with sandbox.open_terminal() as terminal:
        output = iter(terminal)
        assert next(output) == b"$ "

        def type_later() -> None:
            while dict(api.terminal["query"]).get("pid") != "7":
                time.sleep(0.01)
            time.sleep(0.1)
            terminal.write(b"exit\r")

        thread = threading.Thread(target=type_later)
        thread.start()
        assert list(output) == [b"exit\r"]
        thread.join()
    query = dict(api.terminal["query"])
    assert (query["pid"], query["offset"], query["no_resume"]) == ("7", "2", "true")


def test_a_terminal_says_at_once_what_is_wrong(api: FakeApi, sandbox: Sandbox) -> None:
    api.sandboxes[sandbox.id]["phase"] = "paused"
    with pytest.raises(errors.Conflict, match="as scripted"):
        sandbox.open_terminal(no_resume=True)
    del api.sandboxes[sandbox.id]
    with pytest.raises(errors.NotFound):
        sandbox.open_terminal()


@pytest.mark.parametrize(
    ("phase", "kind"), [("paused", errors.StreamLost), ("stopped", errors.ProcessLost), ("", errors.ProcessLost)]
)
def test_a_terminal_is_lost_with_its_sandbox(
    api: FakeApi, sandbox: Sandbox, phase: str, kind: type[errors.SandkeepError]
) -> None:
    api.terminal_close = [1012]
    with sandbox.open_terminal(resume_within=0.5) as terminal:
        if phase:
            api.sandboxes[sandbox.id]["phase"] = phase
        else:
            del api.sandboxes[sandbox.id]
        with pytest.raises(kind):
            list(terminal)


def test_a_terminal_that_breaks_again_and_again_is_given_up(api: FakeApi, sandbox: Sandbox) -> None:
    api.terminal_close = [1012] * 1000
    with sandbox.open_terminal(resume_within=0.5) as terminal, pytest.raises(errors.StreamLost):
        list(terminal)
    assert len(api.terminal_close) > 900


def test_the_same_async(api: FakeApi) -> None:
    api.programs, api.cut_after = [Program(LINES), Program([], gate=threading.Event(), echo=True)], [2, 0]

    async def scenario() -> None:
        async with AsyncClient(api.url, KEY) as client:
            sandbox = await AsyncSandbox.get("dev", client=client)
            process = await sandbox.start_process(["x"])
            events = [event async for event in process]
            assert [event.offset for event in events if isinstance(event, Output)] == [0, 4, 8, 14]
            assert not [event for event in events if isinstance(event, Dropped)]
            api.cut_after = []
            process = await sandbox.start_process(["cat"], stdin=True)
            assert (await process.communicate("hello")).stdout == "hello"
            async with await sandbox.open_terminal() as terminal:
                output = aiter(terminal)
                assert await anext(output) == b"$ "
                await terminal.write(b"exit\r")
                assert [chunk async for chunk in output] == [b"exit\r"]

    asyncio.run(scenario())
