"""The parent of the daemons where there is no systemd: a program of its own, with programs in the place of the daemons."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sandkeep.app.keeper
from support.instance import until

DAEMON = """#!{python}
import fcntl, os, socket, sys, time
run, name = {run!r}, sys.argv[3]
lock = open(run + ("/server/" if name == "server" else "/") + name + ".pid", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write(str(os.getpid()))
lock.flush()
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
speaks = not os.path.exists(run + "/mute")
while True:
    if speaks:
        try:
            notify.sendto(b"WATCHDOG=1", os.environ["NOTIFY_SOCKET"])
        except OSError:
            pass
    time.sleep(int(os.environ["WATCHDOG_USEC"]) / 4e6)
"""
WATCHDOG = 1.2


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "server").mkdir()
    program = tmp_path / "daemon"
    program.write_text(DAEMON.format(python=sys.executable, run=str(tmp_path)))
    program.chmod(0o755)
    return tmp_path


@pytest.fixture
def started(run: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a keeper; it and its daemons are gone afterwards."""
    keepers = []

    def start() -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-S", sandkeep.app.keeper.__file__, "test", *[str(run)] * 2, str(run / "daemon")]
        with (run / "said").open("a") as said:
            keepers.append(subprocess.Popen([*argv, str(WATCHDOG)], stderr=said))
        return keepers[-1]

    yield start
    for keeper in keepers:
        keeper.terminate()
        keeper.wait(20)
    for name in ("runner", "server"):
        with contextlib.suppress(ProcessLookupError, OSError):
            os.kill(pid(run, name), signal.SIGKILL)


def pid(run: Path, name: str) -> int:
    folder = run / "server" if name == "server" else run
    text = (folder / f"{name}.pid").read_text() if (folder / f"{name}.pid").exists() else ""
    return int(text or 0)


@pytest.mark.parametrize("name", ["runner", "server"])
def test_who_hangs_is_killed_and_started_again(
    run: Path, started: Callable[[], subprocess.Popen[bytes]], name: str
) -> None:
    started()
    until(lambda: pid(run, "runner") and pid(run, "server"))
    before = {each: pid(run, each) for each in ("runner", "server")}
    ended = os.pidfd_open(before[name])
    os.kill(before[name], signal.SIGSTOP)
    assert select.select([ended], [], [], 30)[0]
    os.close(ended)
    until(lambda: pid(run, name) not in (0, before[name]))
    other = ({"runner", "server"} - {name}).pop()
    assert pid(run, other) == before[other]
    assert f"the {name} (pid {before[name]}) hangs" in (run / "said").read_text()


def test_who_never_spoke_is_still_starting(run: Path, started: Callable[[], subprocess.Popen[bytes]]) -> None:
    (run / "mute").touch()
    started()
    until(lambda: pid(run, "runner"))
    before = os.pidfd_open(pid(run, "runner"))
    assert not select.select([before], [], [], 3 * WATCHDOG)[0]
    os.close(before)


def test_the_next_keeper_hears_those_that_it_adopts(run: Path, started: Callable[[], subprocess.Popen[bytes]]) -> None:
    first = started()
    until(lambda: pid(run, "runner") and pid(run, "server"))
    first.kill()
    first.wait()
    before = pid(run, "runner")
    started()
    ended = os.pidfd_open(before)
    assert not select.select([ended], [], [], 2 * WATCHDOG)[0]
    os.kill(before, signal.SIGSTOP)
    assert select.select([ended], [], [], 30)[0]
    os.close(ended)
    until(lambda: pid(run, "runner") not in (0, before))


def test_a_stranger_s_word_does_not_count(run: Path, started: Callable[[], subprocess.Popen[bytes]]) -> None:
    import socket

    started()
    until(lambda: pid(run, "runner"))
    before = pid(run, "runner")
    ended = os.pidfd_open(before)
    os.kill(before, signal.SIGSTOP)
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.setblocking(False)
    for _ in range(200):
        with contextlib.suppress(BlockingIOError):
            notify.sendto(b"WATCHDOG=1", str(run / "keeper.notify"))
        if select.select([ended], [], [], 0.1)[0]:
            break
    else:
        pytest.fail("it was taken for alive")
    notify.close()
    os.close(ended)
