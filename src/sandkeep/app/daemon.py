"""What both daemons share: one of a kind per instance, little memory, and a clean way to end."""

import ctypes
import fcntl
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import anyio
import uvicorn

from sandkeep.domain.errors import Conflict
from sandkeep.lib.files import write_durably
from sandkeep.lib.together import together
from sandkeep.telemetry.log import log

RUNNER_CAPABILITIES = (
    "audit_write",  # inside of runc machines: sudo
    "chown",
    "dac_override",
    "dac_read_search",  # inside of gVisor's processes, which open files by handle
    "fowner",
    "fsetid",
    "kill",
    "mknod",  # device files of a machine
    "net_admin",
    "net_bind_service",  # inside of machines
    "net_raw",  # gVisor's packet socket in the sandbox's network namespace
    "setfcap",  # mapping root of a user namespace, which gVisor does
    "setgid",
    "setpcap",
    "setuid",
    "sys_admin",  # mounts, namespaces, btrfs
    "sys_chroot",
    "sys_ptrace",  # what other processes of root have open, in their namespaces
    "sys_resource",  # limits of machines above its own
    "syslog",  # whom the kernel killed for memory, where dmesg_restrict is set
)
"""What the runner keeps, and what its children may have: what runtimes give their machines is part of it. Left out are
the kernel's modules and clock, raw devices, BPF, tracing, audit and security modules, and all that nothing asked for."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MALLOC_THRESHOLD = 4 << 20
"""Bytes. Above what archives, uploads and checksums work with at a time: each such block would be a mapping of its own, and its
pages made anew, which costs five times as much as the copy."""
_LOCK_WITHIN = 2.0
"""Seconds."""
_SIGNS = 4
"""So many within the time after which silence counts."""


def give_memory_back() -> None:
    """Call it before the first thread. glibc would give every worker thread a heap of its own and keep what is freed:
    with a hundred sandboxes a third of the runner's size, for a parallelism that the interpreter's lock forbids."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not in musl, which has no such heaps
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_TRIM_THRESHOLD, _MALLOC_THRESHOLD)
        libc.mallopt(_M_MMAP_THRESHOLD, _MALLOC_THRESHOLD)


def installation_stamp() -> str:
    """Changes when another build of this version was installed."""
    import sandkeep

    package = Path(sandkeep.__file__).parent
    stamp = package / "_build"
    return stamp.read_text().strip() if stamp.exists() else f"source-{package}"


def stamp_file(run_folder: Path) -> Path:
    """Holds the stamp of the build that the daemons run."""
    return run_folder / "installation"


def note_build(run_folder: Path) -> None:
    """After a reboot nobody else says which build runs; `up` says it otherwise, before it starts one."""
    path = stamp_file(run_folder)
    if not path.exists():
        write_durably(path, installation_stamp().encode())


@contextmanager
def only_one(run_folder: Path, name: str) -> Iterator[None]:
    """Holds run_folder/<name>.pid locked while the body runs. Raises Conflict when another process does."""
    path = run_folder / f"{name}.pid"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _locked(fd):
            raise Conflict(f"the {name} of this instance runs already")
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    """Not at the first try only: `holder` looks by locking, and a child that a killed daemon was about to start holds
    its lock until it executes its program."""
    end = time.monotonic() + _LOCK_WITHIN
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
        time.sleep(0.01)


def holder(run_folder: Path, name: str) -> int | None:
    """The pid of the running daemon, or None. The lock tells, not the file."""
    try:
        fd = os.open(run_folder / f"{name}.pid", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(fd, 32, 0).decode().strip()
            return int(text) if text.isdigit() else None
        return None
    finally:
        os.close(fd)


@asynccontextmanager
async def until_signalled(name: str) -> AsyncIterator[anyio.CancelScope]:
    """The body runs until SIGTERM or SIGINT."""
    async with anyio.create_task_group() as tasks:

        async def listen() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    log("daemon.stopping", daemon=name)
                    tasks.cancel_scope.cancel()
                    return

        tasks.start_soon(listen)
        yield tasks.cancel_scope
        tasks.cancel_scope.cancel()


def run(work: Callable[[], Awaitable[None]]) -> None:
    """The daemon's whole life, with signs of it from its first moment on."""

    async def main() -> None:
        async with giving_signs():
            await work()

    anyio.run(main)


@asynccontextmanager
async def giving_signs() -> AsyncIterator[None]:
    """Signs of life while the body runs and the loop turns, to whom started us (systemd, the keeper) and asked for them."""
    where, microseconds = os.environ.pop("NOTIFY_SOCKET", ""), os.environ.pop("WATCHDOG_USEC", "")
    os.environ.pop("WATCHDOG_PID", "")
    if not where or not microseconds.isdigit():
        yield
        return
    address = "\0" + where[1:] if where.startswith("@") else where

    async def give() -> None:
        while True:
            with suppress(OSError):  # a keeper that was killed: the next one listens there
                notify.sendto(b"WATCHDOG=1", address)
            await anyio.sleep(int(microseconds) / 1e6 / _SIGNS)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        notify.setblocking(False)
        async with together() as tasks:
            tasks.start_soon(give)
            yield
            tasks.cancel_scope.cancel()


class Listener(uvicorn.Server):
    """uvicorn without its own signal handling: the daemon decides when to end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listener(app: object, **options: object) -> Listener:
    defaults: dict[str, object] = {
        "log_config": None,
        "access_log": False,
        "lifespan": "off",
        "server_header": False,
        "date_header": False,
        "timeout_graceful_shutdown": 2,
        "timeout_keep_alive": 75,  # clients keep idle connections for 60 s
        "loop": "asyncio",
        "http": "httptools",
        "h11_max_incomplete_event_size": 64 << 10,
    }
    return Listener(uvicorn.Config(app, **{**defaults, **options}))  # type: ignore[arg-type]
