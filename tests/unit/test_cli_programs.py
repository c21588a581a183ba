"""The command line as a program of its own: terminals, signals, speed."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.fake_api import KEY, FakeApi, Program, serve

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "sandkeep.cli.main"]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serve(FakeApi()) as running:
        running.add("dev")
        yield running


def environment(api: FakeApi | None) -> dict[str, str]:
    found = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"], "HOME": "/nonexistent", "TERM": "xterm"}
    return found | ({"SANDKEEP_URL": api.url, "SANDKEEP_KEY": KEY} if api else {})


def until(done: object, what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)


class Screen:
    """A pseudo-terminal that a program runs in; `size` is columns and rows."""

    def __init__(self, api: FakeApi, *arguments: str) -> None:
        self.outer, self.inner = pty.openpty()
        self.resize(100, 30)
        self.before = termios.tcgetattr(self.inner)
        self.seen = b""
        self.program = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=self.inner, stdout=self.inner, stderr=self.inner, env=environment(api), start_new_session=True,
        )  # fmt: skip

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.outer, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, text: bytes) -> None:
        def read() -> bool:
            while select.select([self.outer], [], [], 0)[0]:
                self.seen += os.read(self.outer, 4096)
            return text in self.seen

        until(read, f"{text!r} (seen: {self.seen!r})")

    def restored(self) -> bool:
        return termios.tcgetattr(self.inner)[:4] == self.before[:4]

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.program.kill()
        self.program.wait()
        os.close(self.outer)
        os.close(self.inner)


def test_a_terminal_types_resizes_and_is_restored(api: FakeApi) -> None:
    screen = Screen(api, "exec", "-it", "dev", "--", "bash")
    try:
        screen.expect(b"$ ")
        assert not screen.restored()
        query = api.terminal["query"]
        assert [value for key, value in query if key == "command"] == ["bash"]
        assert dict(query)["cols"] == "100"
        screen.resize(120, 40)
        screen.program.send_signal(signal.SIGWINCH)
        until(lambda: api.terminal["resized"] == [{"cols": 120, "rows": 40}], "the resize")
        os.write(screen.outer, b"\x03ls\r")
        screen.expect(b"\x03ls\r")
        os.write(screen.outer, b"exit\r")
        assert screen.program.wait(10) == 5
        assert screen.restored()
    finally:
        screen.close()


def test_a_killed_shell_restores_the_terminal(api: FakeApi) -> None:
    screen = Screen(api, "shell", "dev")
    try:
        screen.expect(b"$ ")
        until(lambda: not screen.restored(), "raw mode")
        screen.program.send_signal(signal.SIGTERM)
        assert screen.program.wait(10) == 143
        assert screen.restored()
    finally:
        screen.close()


def test_a_terminal_goes_on_after_a_break(api: FakeApi) -> None:
    api.terminal_close = [1012]
    screen = Screen(api, "shell", "dev")
    try:
        screen.expect(b"$ ")
        until(lambda: dict(api.terminal.get("query", [])).get("pid") == "7", "attaching again")
        time.sleep(0.2)
        os.write(screen.outer, b"exit\r")
        assert screen.program.wait(10) == 5
    finally:
        screen.close()


def started(api: FakeApi, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        env=environment(api),
    )  # fmt: skip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_kills_the_remote_command(api: FakeApi, number: int, code: int) -> None:
    api.programs = [Program([("stdout", b"ready\n")], gate=threading.Event())]
    with started(api, "exec", "dev", "--", "sleep", "9") as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        program.send_signal(number)
        assert program.wait(10) == code
    assert next(iter(api.processes.values())).signals == ["SIGNAL_SIGKILL"]


def test_a_signal_makes_run_clean_up(api: FakeApi) -> None:
    api.programs = [Program([("stdout", b"ready\n")], gate=threading.Event())]
    with started(api, "run", "--", "sleep", "9") as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        assert len(api.sandboxes) == 2
        asked = list(api.sandboxes.values())[1]["asked"]
        assert asked == {"persistence": "ephemeral", "grace": 30}
        program.send_signal(signal.SIGINT)
        assert program.wait(10) == 130
    assert len(api.sandboxes) == 1


def test_a_signal_cancels_a_create(api: FakeApi) -> None:
    api.boots_slowly = threading.Event()
    with started(api, "create") as program:
        until(lambda: len(api.sandboxes) == 2, "the request")
        program.send_signal(signal.SIGINT)
        assert program.wait(10) == 130
        assert program.stderr is not None
        assert program.stderr.read().strip() == b"cancelling"
    assert len(api.sandboxes) == 1
    api.boots_slowly.set()


def test_output_that_was_closed_before_is_nobodys(api: FakeApi) -> None:
    api.programs = [Program([("stdout", b"hi\n")])]
    for arguments in (["list"], ["exec", "dev", "--", "echo", "hi"], ["list", "--json"]):
        line = ["/bin/sh", "-c", 'exec "$0" "$@" >&-', *PROGRAM, *arguments]
        done = subprocess.run(line, stderr=subprocess.PIPE, env=environment(api), timeout=30)
        assert (done.returncode, done.stderr) == (0, b""), arguments


def test_a_closed_pipe_kills_the_remote_command(api: FakeApi) -> None:
    api.programs = [Program([("stdout", b"y\n" * 4000)] * 100, gate=threading.Event())]
    with started(api, "exec", "dev", "--", "yes") as program:
        assert program.stdout is not None
        program.stdout.readline()
        program.stdout.close()
        assert program.wait(10) == 141
        assert program.stderr is not None
        assert program.stderr.read() == b""
    assert next(iter(api.processes.values())).signals == ["SIGNAL_SIGKILL"]


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys; from sandkeep.cli.main import main; main(['--help']); "
        "print([m for m in ('click', 'httpx2', 'pydantic', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(None)
    )
    assert done.stdout.endswith("[]\n")


def test_help_answers_within_150_ms() -> None:
    times = []
    for _ in range(5):
        before = time.monotonic()
        subprocess.run([*PROGRAM, "--help"], capture_output=True, check=True, env=environment(None))
        times.append(time.monotonic() - before)
    assert min(times) < 0.15
