"""The daemons of an instance with a clock in them: each journalled step is told to the harness, and waits for its word.

Run as a program (`python daemons.py INSTANCE LOG_FOLDER CLOCK`) by support.faults.stand. It imports the daemons once and
forks one for each name it reads (a restart then takes a tenth of a second, and a keeper's back-off is no part of a
trial). Nothing in the product knows of it. A clock that does not answer holds nothing up: the step is made.
"""

import contextvars
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

from sandkeep.app import entry, runner, server  # noqa: F401 - what the daemons import, once for all
from sandkeep.domain.sandbox import Phase
from sandkeep.drivers.disk.btrfs.disks import BtrfsDisks
from sandkeep.engine import journal, lifecycle, machine, records

_PATIENCE = 30.0
_clock: socket.socket | None = None
_path = ""
_erasing: contextvars.ContextVar[str] = contextvars.ContextVar("erasing", default="")


def tell(subject: str, verb: str, step: str, moment: str, site: str = "") -> None:
    """Say where we are, and go on when the harness says so (or is not there)."""
    global _clock
    line = {"subject": subject, "verb": verb, "step": step, "moment": moment, "site": site, "pid": os.getpid()}
    try:
        if _clock is None:
            _clock = socket.socket(socket.AF_UNIX)
            _clock.settimeout(_PATIENCE)
            _clock.connect(_path)
        _clock.sendall(json.dumps(line).encode() + b"\n")
        _clock.recv(16)
    except OSError:
        _clock = None


def _site() -> str:
    """Of the product's line that journals."""
    frame = sys._getframe(2)
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def wrap_journal() -> None:
    plain_begin, plain_step, plain_close = journal.Journal.begin, journal.Entry.step, journal.Entry.close
    named: dict[int, tuple[str, str]] = {}

    def begin(self: journal.Journal, operation: str, verb: str, subject: str, **facts: Any) -> journal.Entry:
        site = _site()
        tell(subject, verb, "begin", "before", site)
        entry = plain_begin(self, operation, verb, subject, **facts)
        named[id(entry)] = subject, verb
        tell(subject, verb, "begin", "at", site)
        return entry

    def step(self: journal.Entry, name: str, **facts: Any) -> None:
        site = _site()
        subject, verb = named[id(self)]
        tell(subject, verb, name, "before", site)
        plain_step(self, name, **facts)
        tell(subject, verb, name, "at", site)

    def close(self: journal.Entry) -> None:
        subject, verb = named.pop(id(self))
        tell(subject, verb, "close", "before")
        plain_close(self)
        tell(subject, verb, "close", "at")

    journal.Journal.begin, journal.Entry.step, journal.Entry.close = begin, step, close  # type: ignore[method-assign]


def wrap_deletion() -> None:
    """A deletion keeps no journal: its tombstone is one. Its steps are the calls that it makes."""
    plain_save, plain_remove, plain_erase = records.Records.save, records.Records.remove, lifecycle.erase
    plain_end, plain_delete = machine.end, BtrfsDisks.delete

    def save(self: records.Records, record: records.Record) -> records.Record:
        if record.phase is not Phase.DELETED:
            return plain_save(self, record)
        return _around(record.id, "tombstone", lambda: plain_save(self, record))

    def remove(self: records.Records, sandbox_id: str) -> None:
        _around(sandbox_id, "record.remove", lambda: plain_remove(self, sandbox_id))

    async def erase(parts: Any, record: records.Record) -> None:
        token = _erasing.set(record.id)
        try:
            await plain_erase(parts, record)
        finally:
            _erasing.reset(token)

    async def end(parts: Any, record: records.Record) -> records.Record:
        if _erasing.get() == record.id:
            tell(record.id, "delete", "machine.end", "at")
        return await plain_end(parts, record)

    async def delete(self: BtrfsDisks, sandbox_id: str) -> None:
        if _erasing.get() == sandbox_id:
            tell(sandbox_id, "delete", "disk.delete", "at")
        await plain_delete(self, sandbox_id)

    records.Records.save, records.Records.remove = save, remove  # type: ignore[method-assign]
    lifecycle.erase, machine.end, BtrfsDisks.delete = erase, end, delete  # type: ignore[method-assign]


def _around(sandbox_id: str, step: str, act: Callable[[], Any]) -> Any:
    tell(sandbox_id, "delete", step, "before")
    done = act()
    tell(sandbox_id, "delete", step, "at")
    return done


def become(name: str, instance: str, log_folder: str) -> None:
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(f"{log_folder}/{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for fd, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(fd, target)
    getattr(entry, name)(entry.load(instance))


def main(instance: str, log_folder: str, clock: str) -> None:
    """Until its stdin ends."""
    global _path
    _path = clock
    wrap_journal()
    wrap_deletion()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    while True:
        select.select([0], [], [])
        name = os.read(0, 1).decode()
        if not name:
            return
        if os.fork() == 0:
            try:
                become({"r": "runner", "s": "server"}[name], instance, log_folder)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
