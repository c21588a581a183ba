"""Runs programs: an argv list, a deadline, output in a memory file, a typed failure. The only home of subprocess.

Output goes to a memory file, never to a pipe: a program that leaves a daemon behind (runsc, runc) would keep the pipe
open and its reader waiting. Exits arrive by pidfd, so nothing polls. A process that adopts orphans (the runner) calls
`adopt_orphans()` once; it then reaps whatever ends without taking exit statuses away from `run()`.

What a program is not given, it cannot leak: it gets a clean environment, not ours; files that it makes are its owner's
alone; and unless somebody says `may_gain`, it can gain no rights by what it executes.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sandkeep.lib import privileges

_PR_SET_CHILD_SUBREAPER = 36
_KEPT_OUTPUT = 1 << 20

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NETWORK_VARIABLES = tuple(
    spelled
    for name in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
    for spelled in (name, name.upper())
)

_mine: dict[int, "Child"] = {}


def clean_environment(*inherited: str) -> dict[str, str]:
    """What every program gets, and of ours those variables alone."""
    ours = {name: os.environ[name] for name in inherited if name in os.environ}
    return {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **ours}


@dataclass(frozen=True)
class Completed:
    """A program that ended: its argv, exit code (negative: killed by that signal), and the last MiB of each output."""

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str


class ProgramError(Exception):
    """A program ended with a failure; carries what it printed."""

    def __init__(self, completed: Completed) -> None:
        self.completed = completed
        tail = completed.stderr.strip() or completed.stdout.strip()
        super().__init__(f"{Path(completed.argv[0]).name} exited with {completed.code}: {tail[-800:]}")


class ProgramTimeoutError(Exception):
    """A program did not end before its deadline and was killed."""


class ProgramMissingError(Exception):
    """A program is not installed on this host."""


class Child:
    """A running program. `wait()` may be called from any number of tasks of the loop that started it."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid
        self.code: int | None = None
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(popen.pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._collect)

    def _collect(self) -> None:
        if self.code is not None:
            return
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self.pid, 0
        if pid:
            self._finish(os.waitstatus_to_exitcode(status))

    def _finish(self, code: int) -> None:
        self.code = self._popen.returncode = code
        _mine.pop(self.pid, None)
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.code is not None
        return self.code

    def send_signal(self, number: int) -> None:
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)


def spawn(
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    pass_fds: Sequence[int] = (),
    new_session: bool = False,
    umask: int = 0o077,
    may_gain: bool = False,
) -> Child:
    """Start a program in the running loop. Outputs default to /dev/null, env to a clean one. may_gain: what it runs may
    have more rights than it, such as sudo in a runc machine. Raises ProgramMissingError."""
    null = subprocess.DEVNULL

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            list(argv),
            stdin=null if stdin is None else stdin,
            stdout=null if stdout is None else stdout,
            stderr=null if stderr is None else stderr,
            env=clean_environment() if env is None else dict(env),
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            start_new_session=new_session,
            umask=umask,
        )

    try:
        popen = start() if may_gain else _without_gain(start)
    except FileNotFoundError as error:
        raise ProgramMissingError(f"{argv[0]} is not installed") from error
    child = Child(popen)
    _mine[child.pid] = child
    return child


def _without_gain(start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Called in a thread of its own: that it can gain nothing is a property of a thread, which a child inherits, and
    cannot be taken back."""
    started: list[subprocess.Popen[bytes]] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            privileges.never_gain()
            started.append(start())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="spawn")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return started[0]


async def run(
    argv: Sequence[str],
    *,
    timeout: float,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    check: bool = True,
    output: IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
    umask: int = 0o077,
    may_gain: bool = False,
) -> Completed:
    """Run a program to its end. `timeout` in seconds, then SIGKILL to its process group and ProgramTimeoutError.

    `output` receives stdout and stderr instead of memory (for long builds). Raises ProgramError when `check`.
    """
    out, err = os.memfd_create("stdout"), os.memfd_create("stderr")
    source = os.memfd_create("stdin") if stdin is not None else None
    try:
        if source is not None and stdin is not None:
            os.write(source, stdin)
            os.lseek(source, 0, os.SEEK_SET)
        child = spawn(
            argv,
            stdin=source,
            stdout=output or out,
            stderr=output or err,
            env=env,
            cwd=cwd,
            pass_fds=pass_fds,
            new_session=True,
            umask=umask,
            may_gain=may_gain,
        )
        try:
            async with asyncio.timeout(timeout):
                code = await child.wait()
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            if isinstance(error, TimeoutError):
                raise ProgramTimeoutError(f"{argv[0]} did not end within {timeout:g} s") from error
            raise
        done = Completed(tuple(argv), code, _tail(out), _tail(err))
    finally:
        for fd in (out, err, *([source] if source is not None else [])):
            os.close(fd)
    if check and done.code:
        raise ProgramError(done)
    return done


def _tail(fd: int) -> str:
    size = os.fstat(fd).st_size
    return os.pread(fd, _KEPT_OUTPUT, max(0, size - _KEPT_OUTPUT)).decode(errors="replace")


def adopt_orphans() -> None:
    """Become the parent of every orphan below this process and reap it when it ends. Call once, in the main loop."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, _reap)


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        child = _mine.get(pid)
        if child is not None:
            child._finish(os.waitstatus_to_exitcode(status))


async def wait_gone(pids: Sequence[int], timeout: float) -> bool:
    """Wait until none of these processes lives, ours or not. True when all are gone within `timeout` seconds."""
    loop, waits, fds = asyncio.get_running_loop(), [], []
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        done = loop.create_future()
        loop.add_reader(fd, _resolve, done)
        fds.append(fd)
        waits.append(done)
    try:
        async with asyncio.timeout(timeout):
            await asyncio.gather(*waits)
        return True
    except TimeoutError:
        return False
    finally:
        for fd in fds:
            loop.remove_reader(fd)
            os.close(fd)


def _resolve(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)


async def kill(pids: Sequence[int], timeout: float = 5.0) -> bool:
    """SIGKILL these processes and wait for them. True when all are gone within `timeout` seconds."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return await wait_gone(pids, timeout)
