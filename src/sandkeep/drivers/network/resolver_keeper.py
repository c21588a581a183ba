"""Keeps one resolver process alive per instance: starts it, adopts a running one, replaces a dead one at once."""

import contextlib
import json
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import anyio

from sandkeep.domain.errors import Unavailable
from sandkeep.drivers.network import resolver
from sandkeep.drivers.network.layout import GATEWAY, NetworkSettings
from sandkeep.lib import process
from sandkeep.lib.files import write_json_durably
from sandkeep.lib.retry import delays

_FREEBIND = 15
_HEALTHY = 10.0
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 5.0
_A_LONG_TIME = 3600.0


@dataclass(frozen=True)
class ResolverSettings:
    """user, group: whom the resolver runs as, never 0. rate, burst: queries per second and sandbox."""

    network: NetworkSettings
    user: int
    group: int
    resolv_conf: Path = Path("/etc/resolv.conf")
    rate: float = 100.0
    burst: float = 200.0


def open_resolver_sockets(settings: NetworkSettings) -> tuple[socket.socket, socket.socket]:
    """(UDP, TCP) on the gateway address, which no interface has before the first sandbox. Raises OSError."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for sock in (udp, tcp):
            sock.setsockopt(socket.SOL_IP, _FREEBIND, 1)
            sock.bind((GATEWAY, settings.dns_port))
        tcp.listen(128)
    except BaseException:
        udp.close()
        tcp.close()
        raise
    return udp, tcp


def resolver_argv(settings: ResolverSettings) -> tuple[str, ...]:
    """Its sockets are its stdin (UDP) and stdout (TCP)."""
    return (
        sys.executable,
        "-I",
        "-S",
        str(Path(resolver.__file__).with_name("__main__.py")),
        f"--instance={settings.network.prefix}",
        f"--clients={settings.network.address_range}",
        f"--resolv-conf={settings.resolv_conf}",
        f"--user={settings.user}",
        f"--group={settings.group}",
        f"--rate={settings.rate:g}",
        f"--burst={settings.burst:g}",
    )


class ResolverKeeper:
    """`run()` in a task group of the runner; cancelling it leaves the resolver alive for the next runner to adopt."""

    def __init__(self, settings: ResolverSettings) -> None:
        self._settings = settings
        self._argv = resolver_argv(settings)
        self._record = settings.network.run_folder / "resolver.json"
        self._log = settings.network.run_folder / "resolver.log"
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self.pid: int | None = None

    async def run(self) -> None:
        """Never returns. The first start may raise Unavailable (the port is taken); later failures are retried."""
        await self.start()
        waits = delays(_FIRST_WAIT, _LONGEST_WAIT)
        try:
            while True:
                started = time.monotonic()
                assert self.pid is not None
                while not await process.wait_gone([self.pid], _A_LONG_TIME):
                    pass
                if time.monotonic() - started > _HEALTHY:
                    waits = delays(_FIRST_WAIT, _LONGEST_WAIT)
                while True:
                    await anyio.sleep(next(waits))
                    with contextlib.suppress(Unavailable, process.ProgramMissingError):
                        await self.start()
                        break
        finally:
            self._close_sockets()

    async def start(self) -> None:
        """A resolver with these settings runs when this returns: the one that runs already, or a fresh one. Raises
        Unavailable."""
        found = self._running()
        if found is not None:
            pid, argv = found
            if argv == self._argv:
                self.pid = pid
                return
            await process.kill([pid])  # an older version, or other settings
        try:
            self._sockets = self._sockets or open_resolver_sockets(self._settings.network)
        except OSError as error:
            port = self._settings.network.dns_port
            raise Unavailable(
                f"the resolver cannot listen on {GATEWAY}:{port}: {error.strerror}",
                hint="another instance uses this port: set another dns_port",
                retry_after=1.0,
            ) from error
        udp, tcp = self._sockets
        with open(self._log, "wb") as log:
            child = process.spawn(
                self._argv, stdin=udp.fileno(), stdout=tcp.fileno(), stderr=log, env={}, cwd="/", new_session=True
            )
        self.pid = child.pid
        started = start_time(child.pid)
        write_json_durably(self._record, {"pid": child.pid, "started": started, "argv": self._argv})

    async def stop(self) -> None:
        """For purge: kills the resolver and removes its record."""
        found = self._running()
        if found is not None:
            await process.kill([found[0]])
        self._record.unlink(missing_ok=True)
        self._log.unlink(missing_ok=True)
        self._close_sockets()
        self.pid = None

    def _close_sockets(self) -> None:
        for sock in self._sockets or ():
            sock.close()
        self._sockets = None

    def _running(self) -> tuple[int, tuple[str, ...]] | None:
        """(pid, argv) of the recorded resolver while that very process lives."""
        try:
            record = json.loads(self._record.read_text())
            pid, started, argv = int(record["pid"]), record["started"], tuple(record["argv"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return (pid, argv) if started is not None and start_time(pid) == started else None


def start_time(pid: int) -> str | None:
    """A process's start in clock ticks since boot with the boot's id: with the pid it names one process for ever.
    None when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stat, open("/proc/sys/kernel/random/boot_id") as boot:
            state, *fields = stat.read().rpartition(")")[2].split()
            return None if state in "ZX" else f"{boot.read().strip()}/{fields[18]}"
    except (FileNotFoundError, ProcessLookupError):
        return None
