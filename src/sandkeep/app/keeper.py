"""A minimal parent for hosts without systemd: starts the daemons, restarts the one that dies, with back-off.

Run as a program (`python -m sandkeep.app.keeper INSTANCE RUN_FOLDER LOG_FOLDER PYTHON`); imports little, so that it costs
little. It adopts daemons that a killed keeper left: the lock on their pid file tells that they live. SIGTERM ends the
daemons and itself; sandboxes stay.
"""

import fcntl
import os
import resource
import select
import signal
import sys
import time

DAEMONS = ("runner", "server")
_FIRST_WAIT, _LONGEST_WAIT, _HEALTHY = 0.1, 10.0, 10.0
_LOG_LIMIT = 16 << 20
_LOOK_AT_LOGS = 10.0


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


class Daemon:
    def __init__(self, name: str, instance: str, run_folder: str, log_folder: str, python: str) -> None:
        self.name = name
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
        self.due = 0.0

    def start(self) -> None:
        found = _locked_pid(self._pid_file)
        self._begun = time.monotonic()
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
            os.execv(self._argv[0], self._argv)  # noqa: S606 - our own interpreter, no shell
        finally:
            os._exit(127)

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
    instance, run_folder, log_folder, python = argv
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
    daemons = [Daemon(name, instance, run_folder, log_folder, python) for name in DAEMONS]
    while not stopping:
        now = time.monotonic()
        for daemon in daemons:
            daemon.bound_log()
            if daemon.pidfd < 0 and daemon.due <= now:
                daemon.start()
        poll = select.poll()
        poll.register(wake_read, select.POLLIN)
        for daemon in daemons:
            if daemon.pidfd >= 0:
                poll.register(daemon.pidfd, select.POLLIN)
        dues = [daemon.due for daemon in daemons if daemon.pidfd < 0]
        timeout = max(0, min([time.monotonic() + _LOOK_AT_LOGS, *dues]) - time.monotonic()) * 1000 + 1
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
