"""A minimal parent for hosts without systemd: starts the daemons, restarts the one that dies, with back-off.

Run as a program (`python -m sandkeep.app.keeper INSTANCE RUN_FOLDER LOG_FOLDER PYTHON WATCHDOG`); imports little, so that it
costs little. It adopts daemons that a killed keeper left: the lock on their pid file tells that they live. One that gives no
sign of life any more, as systemd's watchdog protocol has it, is killed, and started again. SIGTERM ends the daemons and itself;
sandboxes stay.
"""

import fcntl
import os
import resource
import select
import signal
import socket
import struct
import sys
import time

DAEMONS = ("runner", "server")
_FIRST_WAIT, _LONGEST_WAIT, _HEALTHY = 0.1, 10.0, 10.0
_LOG_LIMIT = 16 << 20
_LOOKS = 6
_LONGEST_LOOK = 10.0
"""So many times within the watchdog's seconds, but at least so often, logs and signs of life are looked at. Looks are counted,
not seconds: a keeper that was itself held up, or whose host was, must not take that for silence."""
_CREDENTIALS = struct.Struct("3i")


def _locked_pid(path: str) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        text = os.pread(fd, 32, 0).decode().strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(fd)


class Signs:
    """Signs of life: `WATCHDOG=1` from a daemon to NOTIFY_SOCKET; who sent it, the kernel says. A keeper that follows a killed
    one takes the socket's place, and hears those that it adopts."""

    def __init__(self, path: str, seconds: float, group: int) -> None:
        """`group`: who else than root may speak: the server's, by number. What others could fill, they could silence."""
        self.environment = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": str(int(seconds * 1e6))} if seconds else {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        self._socket.bind(path)
        os.chown(path, -1, group)
        os.chmod(path, 0o660)

    def fileno(self) -> int:
        return self._socket.fileno()

    def heard(self) -> set[int]:
        """Pids of those that said so."""
        pids: set[int] = set()
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(64, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return pids
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and data == b"WATCHDOG=1":
                    pids.add(_CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0])


class Daemon:
    def __init__(
        self, name: str, instance: str, run_folder: str, log_folder: str, python: str, environment: dict[str, str]
    ) -> None:
        self.name = name
        self._environment = environment
        self._argv = [python, "-m", "sandkeep.cli.main", name, "--instance", instance]
        inner = "server/" if name == "server" else ""
        self._pid_file = f"{run_folder}/{inner}{name}.pid"
        self._log = f"{log_folder}/{name}.log"
        self._ends_file = f"{run_folder}/{name}.ends"
        self._ends = 0
        self.pidfd = -1
        self.pid = 0
        self._ours = False
        self._wait = _FIRST_WAIT
        self._begun = 0.0
        self._silent: int | None = None
        self.due = 0.0

    def start(self) -> None:
        found = _locked_pid(self._pid_file)
        self._begun, self._silent = time.monotonic(), None
        if found:
            self.pid, self._ours = found, False
        else:
            self.pid, self._ours = self._spawn(), True
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self.ended()

    def bound_log(self) -> None:
        """Copy it away and empty it, under the daemon's hands: it appends, so it goes on at the new end, and needs not be
        asked. Copied until nothing came meanwhile, so that hardly a line is lost."""
        try:
            if os.path.getsize(self._log) <= _LOG_LIMIT:
                return
            with open(self._log, "r+b", buffering=0) as log, open(self._log + ".1.new", "wb", buffering=0) as old:
                os.fchmod(old.fileno(), 0o600)
                while data := log.read(1 << 20):
                    old.write(data)
                log.truncate(0)
            os.replace(self._log + ".1.new", self._log + ".1")
        except FileNotFoundError:  # it has not begun yet
            return
        except OSError as error:  # a full disk must not end the keeper
            print(f"the log {self._log} was not rotated: {error}", file=sys.stderr)

    def _spawn(self) -> int:
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        pid = os.fork()
        if pid:
            os.close(log)
            return pid
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.closerange(3, 256)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.execve(self._argv[0], self._argv, {**os.environ, **self._environment})  # noqa: S606 - no shell
        finally:
            os._exit(127)

    def lives(self) -> None:
        self._silent = 0

    def look(self, patience: float) -> None:
        """Kill it if it was silent at so many looks. One that has not begun to speak is still starting."""
        if self._silent is None or self.pidfd < 0:
            return
        self._silent += 1
        if self._silent > patience:
            print(
                f"the {self.name} (pid {self.pid}) hangs: it is killed, and started again", file=sys.stderr, flush=True
            )
            self._silent = None
            self.send(signal.SIGKILL)

    def ended(self) -> None:
        """Plan the next start."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        if self._ours:
            try:
                os.waitpid(self.pid, 0)
            except ChildProcessError:
                pass
        self._ends += 1
        with open(self._ends_file, "w") as file:  # for `up`, which waits for it
            file.write(f"{self._ends}\n")
        now = time.monotonic()
        self._wait = _FIRST_WAIT if now - self._begun > _HEALTHY else min(_LONGEST_WAIT, self._wait * 2)
        self.due = now + self._wait

    def send(self, number: int) -> None:
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                pass


def main(argv: list[str]) -> int:
    instance, run_folder, log_folder, python, watchdog = argv
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))  # see lib/privileges, which is too much to load here
    lock = os.open(f"{run_folder}/keeper.pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    stopping: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stopping.append(number)
        os.write(wake_write, b".")

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    seconds = float(watchdog)
    signs = Signs(f"{run_folder}/keeper.notify", seconds, os.stat(f"{run_folder}/server").st_gid)
    daemons = [Daemon(name, instance, run_folder, log_folder, python, signs.environment) for name in DAEMONS]
    every = min(_LONGEST_LOOK, seconds / _LOOKS or _LONGEST_LOOK)
    # Off: who was asked for signs by a keeper before this one goes on giving them, and is not looked after.
    patience = seconds / every or float("inf")
    look = time.monotonic()
    while not stopping:
        now = time.monotonic()
        heard = signs.heard()
        for daemon in daemons:
            if daemon.pid in heard:
                daemon.lives()
            if now >= look:
                daemon.bound_log()
                daemon.look(patience)
            if daemon.pidfd < 0 and daemon.due <= now:
                daemon.start()
        if now >= look:
            look = now + every
        poll = select.poll()
        poll.register(wake_read, select.POLLIN)
        poll.register(signs, select.POLLIN)
        for daemon in daemons:
            if daemon.pidfd >= 0:
                poll.register(daemon.pidfd, select.POLLIN)
        dues = [daemon.due for daemon in daemons if daemon.pidfd < 0]
        timeout = max(0, min([look, *dues]) - time.monotonic()) * 1000 + 1
        ready = {fd for fd, _ in poll.poll(timeout)}
        for daemon in daemons:
            if daemon.pidfd in ready:
                daemon.ended()
    for daemon in reversed(daemons):
        daemon.send(signal.SIGTERM)
    deadline = time.monotonic() + 10
    for daemon in daemons:
        while daemon.pidfd >= 0:
            poll = select.poll()
            poll.register(daemon.pidfd, select.POLLIN)
            if poll.poll(max(0, (deadline - time.monotonic()) * 1000)):
                daemon.ended()
            else:
                daemon.send(signal.SIGKILL)
                deadline += 5
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
