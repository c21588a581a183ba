"""Output without end, readers that are slow or gone, many at once; and the command line's way through it."""

import concurrent.futures
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
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandkeep.sdk import Client, Output, Sandbox
from sandkeep.sdk.results import Dropped
from support.instance import Instance, until

MIB = 1 << 20
NUMBERED = "i = 0\nwhile True:\n    print(f'{i:09d}'); i += 1"
"""Lines that tell by themselves whether one is missing."""


@pytest.fixture
def box(client: Client, runtime: str) -> Sandbox:
    return Sandbox.create(template="test", runtime=runtime, memory="512MiB", name="floods", client=client)


def agents_memory(box: Sandbox) -> int:
    return int(box.exec("awk '/^VmRSS/ {print $2}' /proc/1/status").stdout) << 10


def servers_memory(instance: Instance) -> int:
    lines = Path(f"/proc/{instance.pid('server')}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) << 10


def test_an_exec_that_floods_is_cut(box: Sandbox, instance: Instance) -> None:
    server, agent = servers_memory(instance), agents_memory(box)
    done = box.exec("head -c 200M /dev/zero | tr '\\0' x; echo done >&2; exit 7", timeout=120)
    assert (done.exit_code, done.truncated, done.stderr) == (7, True, "done\n")
    assert len(done.stdout_bytes) == 8 * MIB
    assert agents_memory(box) - agent < 64 * MIB
    assert servers_memory(instance) - server < 150 * MIB


def test_a_slow_reader_holds_the_process_back_and_loses_nothing(box: Sandbox, instance: Instance) -> None:
    server, agent = servers_memory(instance), agents_memory(box)
    process = box.start_process(["python3", "-c", NUMBERED])
    kept = b""
    for event in process:
        assert isinstance(event, Output)
        kept += event.data
        if len(kept) > 200_000:
            break
    held = agents_memory(box) - agent
    until(lambda: (found := _offset(box, process.pid)) == _offset(box, process.pid) and found, 20, 0.1)
    assert _offset(box, process.pid) < len(kept) + 16 * MIB, "it runs on although nobody reads"
    for event in process:
        assert isinstance(event, Output)
        kept += event.data
        if len(kept) > 3 * MIB:
            break
    assert kept[: 10 * 300_000] == b"".join(b"%09d\n" % number for number in range(300_000))
    assert held < 32 * MIB and servers_memory(instance) - server < 64 * MIB
    process.kill()
    process.detach()


def _offset(box: Sandbox, pid: int) -> int:
    return next(one.offset for one in box.processes() if one.pid == pid)


def test_a_reader_that_goes_leaves_the_process_running(box: Sandbox, instance: Instance) -> None:
    agent = agents_memory(box)
    process = box.start_process(["python3", "-c", NUMBERED])
    next(iter(process))
    seen = process.offset
    process.detach()
    until(lambda: _offset(box, process.pid) > seen + 30 * MIB, 60)
    assert agents_memory(box) - agent < 32 * MIB
    again = box.attach(process.pid, offset=seen)
    events = iter(again)
    first = next(events)
    assert isinstance(first, Dropped) and first.count > 20 * MIB
    following = next(events)
    assert isinstance(following, Output) and following.offset == first.offset
    number = -(-following.offset // 10)
    assert following.data[number * 10 - following.offset :][:10] == b"%09d\n" % number
    again.kill()
    again.detach()


def test_attaching_again_leaves_no_gap(box: Sandbox) -> None:
    process = box.start_process(["python3", "-c", "import time\nfor i in range(4000): print(f'{i:09d}', flush=True)"])
    kept, offset = b"", 0
    while len(kept) < 40_000:
        reader = box.attach(process.pid, offset=offset)
        for event in reader:
            assert isinstance(event, Output) and event.offset == offset
            kept, offset = kept + event.data, event.offset + len(event.data)
            if len(event.data) > 100:
                break
        reader.detach()
    assert kept == b"".join(b"%09d\n" % number for number in range(4000))
    assert process.wait().exit_code == 0


def test_fifty_at_once(box: Sandbox) -> None:
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda n: box.exec(f"echo {n}; sleep 0.2; exit {n}"), range(50)))
    assert [(done.stdout, done.exit_code) for done in answers] == [(f"{n}\n", n) for n in range(50)]


# The command line.


def test_exec_is_like_running_it_here(box: Sandbox, instance: Instance) -> None:
    def run(*command: str, **options: object) -> tuple[int, str, str]:
        done = instance.run("exec", "floods", *command, check=False, **options)  # type: ignore[arg-type]
        return done.returncode, done.stdout, done.stderr

    assert run("--", "sh", "-c", "echo out; echo err >&2; exit 42") == (42, "out\n", "err\n")
    assert run("--", "sh", "-c", "kill -TERM $$")[0] == 143
    assert run("--", "sh", "-c", "kill -KILL $$")[0] == 137
    assert run("--cwd", "/tmp", "--env", "A=b c", "--user", "root", "--", "sh", "-c", 'pwd; echo "$A"; id -u') == (
        0, "/tmp\nb c\n0\n", "",
    )  # fmt: skip
    code, _, said = run("--timeout", "1s", "--", "sleep", "60")
    assert code == 137 and "timeout" in said
    assert run("--", "no-such-program")[0] == 127
    assert run("-i", "--", "wc", "-c", input="x" * 3_000_000)[1] == "3000000\n"
    assert run("-i", "--", "cat", input="ünï\n")[1] == "ünï\n"
    assert run("--", "cat") == (0, "", "")
    box.pause(hold="memory")
    assert run("--no-resume", "--", "true")[0] == 125
    assert run("--", "echo", "awake") == (0, "awake\n", "")


def test_interrupting_exec_kills_the_command(box: Sandbox, instance: Instance) -> None:
    cli = [sys.executable, "-m", "sandkeep.cli.main", "exec", "floods", "--", "sh", "-c", "echo on; sleep 1000"]
    process = subprocess.Popen(cli, env=instance.env, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"on\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    process.stdout.close()
    until(lambda: not box.processes())


def test_run_streams_and_leaves_nothing(client: Client, instance: Instance, runtime: str) -> None:
    arguments = ["run", "--template", "test", "--runtime", runtime, "--memory", "128MiB"]
    script = "echo one; read answer; echo got $answer; exit 9"
    cli = [sys.executable, "-m", "sandkeep.cli.main", *arguments, "-i", "--", "sh", "-c", script]
    process = subprocess.Popen(cli, env=instance.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    assert process.stdout.readline() == b"one\n", "it comes while the command still runs"
    process.stdin.write(b"this\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"got this\n"
    assert process.wait(30) == 9
    process.stdin.close()
    process.stdout.close()
    until(lambda: not list(Sandbox.list(client=client)))


class Screen:
    """A program in a terminal of ours."""

    def __init__(self, argv: list[str], env: dict[str, str], columns: int = 80, rows: int = 24) -> None:
        self.keys, inner = pty.openpty()
        self.resize(columns, rows)
        self.process = subprocess.Popen(
            argv, env=env, stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(inner)
        self.text = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.keys, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.keys, text.encode())

    def shows(self, wanted: str, timeout: float = 20) -> str:
        """Wait until it is printed; what came before it is taken away."""
        end = time.monotonic() + timeout
        while wanted not in self.text:
            assert time.monotonic() < end, f"{wanted!r} is not in {self.text!r}"
            if select.select([self.keys], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.text += os.read(self.keys, 65536).decode(errors="replace")
        before, _, self.text = self.text.partition(wanted)
        return before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.keys)


@pytest.fixture
def screen(instance: Instance) -> Iterator[Callable[..., Screen]]:
    made: list[Screen] = []

    def start(*arguments: str) -> Screen:
        made.append(Screen([sys.executable, "-m", "sandkeep.cli.main", *arguments], {**instance.env, "TERM": "xterm"}))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_a_real_terminal(box: Sandbox, screen: Callable[..., Screen]) -> None:
    one = screen("exec", "floods", "-it", "--", "bash", "--norc")
    one.shows("$")
    one.type("tput() { stty size; }; tput; test -t 0 && echo is'-'terminal\n")
    one.shows("24 80")
    one.shows("is-terminal")
    one.resize(132, 40)
    os.kill(one.process.pid, signal.SIGWINCH)
    until(lambda: one.type("stty size\n") is None and _has(one, "40 132"), 20, 0.2)
    one.type("sleep 1000; echo ended with $?\n")
    one.shows("ended with $?")
    one.shows("\n")
    until(lambda: any("sleep" in line for line in box.exec("cat /proc/[0-9]*/cmdline").stdout.split("\0")))
    one.type("\x03")
    one.shows("$")
    one.type("echo code $?\n")
    one.shows("code 130")
    one.type("exit 23\n")
    assert one.process.wait(20) == 23


def _has(screen: Screen, wanted: str) -> bool:
    try:
        screen.shows(wanted, timeout=0.3)
    except AssertionError:
        return False
    return True


def test_shell_is_a_login_shell_and_passes_its_exit_code_on(box: Sandbox, screen: Callable[..., Screen]) -> None:
    one = screen("shell", "floods")
    one.type("shopt -q login_shell && echo login'-'shell; id -un\n")
    one.shows("login-shell")
    one.shows("user")
    one.type("kill -9 $$\n")
    assert one.process.wait(20) == 137
