"""`sandkeep support-bundle`: what helps somebody else to see what is wrong with an instance, in one file, without secrets.

It asks nobody but the disk, the kernel and, if it answers, the server: so it works with both daemons dead. A section that
cannot be had is named with its reason, and the others go on. Sandboxes' environments, tokens, keys and what guests print
are not collected; and whatever secret this node knows is cut out of everything else, should it have got there.
"""

import io
import json
import os
import platform
import re
import sys
import tarfile
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync

from sandkeep import __version__
from sandkeep.app import doctor, inspection, systemd, wiring
from sandkeep.app.daemon import installation_stamp
from sandkeep.app.settings import Settings, redacted, secrets_of
from sandkeep.app.standalone import require_root
from sandkeep.domain.errors import AlreadyExists, InvalidArgument, SandkeepError
from sandkeep.engine.journal import Journal
from sandkeep.engine.records import Record, Records
from sandkeep.lib import process
from sandkeep.sdk import Client
from sandkeep.sdk.errors import SandkeepError as ClientError

_LOG_BYTES = 4 << 20
_EVENTS = 5000
_SECTION_WITHIN = 60.0
_SHORTEST_SECRET = 6
"""Shorter values, such as `1` or `prod`, are no secrets and would cut up everything."""


async def collect(settings: Settings, target: Path) -> dict[str, Any]:
    """Makes the archive `target`, mode 0600. Returns {file, contents: [{name, size, what}], problems: [{name, reason}]}.
    Raises AlreadyExists, InvalidArgument when it cannot be written."""
    require_root()
    records = Records(settings.node_folder)
    records.load()
    archive = _Archive(_Cutter(settings, records))
    sections: dict[str, tuple[str, Callable[[], Awaitable[Any]]]] = {
        "versions.json": ("Sandkeep, kernel, distribution and programs", lambda: _versions(settings)),
        "settings.json": ("settings, without passwords", lambda: _now(redacted(settings))),
        "doctor.json": ("what doctor finds", lambda: _doctor(settings)),
        "fsck.json": ("what fsck finds", lambda: inspection.inspect(settings)),
        "records.json": ("the node's records, without environments and tokens", lambda: _now(_summaries(records))),
        "journal.json": ("operations that are under way or interrupted", lambda: run_sync(_journal, settings)),
        "host.json": ("memory, load, and what is mounted for us", lambda: run_sync(_host, settings)),
        "events.json": (f"the last {_EVENTS} events, from the server", lambda: run_sync(_events, settings)),
    }
    for name, (what, section) in sections.items():
        try:
            with anyio.fail_after(_SECTION_WITHIN):
                archive.add_json(name, what, await section())
        except (SandkeepError, ClientError, OSError, ValueError, process.ProgramError, TimeoutError) as error:
            archive.miss(name, str(error) or type(error).__name__)
    await _add_logs(settings, archive)
    _write(target, archive.finished())
    return {"file": str(target), "contents": archive.contents, "problems": archive.problems}


class _Cutter:
    """Cuts the secrets that this node knows out of a text."""

    def __init__(self, settings: Settings, records: Records) -> None:
        known = set(secrets_of(settings))
        for record in records.sandboxes.values():
            known |= {record.token, *record.spec.env.values()}
        spelled = {form for secret in known if len(secret) >= _SHORTEST_SECRET for form in (secret, _in_json(secret))}
        longest_first = sorted(spelled, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if spelled else None

    def cut(self, text: str) -> str:
        return self._pattern.sub("(redacted)", text) if self._pattern else text


def _in_json(secret: str) -> str:
    return json.dumps(secret)[1:-1]


class _Archive:
    def __init__(self, cutter: _Cutter) -> None:
        self._cutter = cutter
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w:gz")  # noqa: SIM115 - finished() closes it
        self.contents: list[dict[str, Any]] = []
        self.problems: list[dict[str, str]] = []

    def add(self, name: str, what: str, text: str) -> None:
        data = self._cutter.cut(text).encode(errors="replace")
        entry = tarfile.TarInfo(f"sandkeep-support/{name}")
        entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
        self._tar.addfile(entry, io.BytesIO(data))
        self.contents.append({"name": name, "size": len(data), "what": what})

    def add_json(self, name: str, what: str, value: Any) -> None:
        self.add(name, what, json.dumps(value, indent=1, default=str, ensure_ascii=False))

    def miss(self, name: str, reason: str) -> None:
        self.problems.append({"name": name, "reason": self._cutter.cut(reason)})

    def finished(self) -> bytes:
        self.add_json("problems.json", "what could not be collected, and why", self.problems)
        self._tar.close()
        return self._buffer.getvalue()


async def _now(value: Any) -> Any:
    return value


async def _versions(settings: Settings) -> dict[str, Any]:
    gvisor, runc = (
        wiring.first_existing(configured, places)
        for configured, places in ((settings.runsc, wiring.RUNSC_PLACES), (settings.runc, wiring.RUNC_PLACES))
    )
    programs = {"gvisor": [str(gvisor)], "runc": [str(runc)], "btrfs": ["btrfs"], "nft": ["nft"], "mount": ["mount"]}
    found = {}
    for name, argv in programs.items():
        try:
            done = await process.run([*argv, "--version"], timeout=10, check=False)
            found[name] = done.stdout.strip() or done.stderr.strip()
        except (process.ProgramMissingError, process.ProgramTimeoutError, OSError) as error:
            found[name] = str(error)
    return {
        "sandkeep": __version__,
        "build": installation_stamp(),
        "python": sys.version,
        "kernel": " ".join(os.uname()[2:]),
        "distribution": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "systemd": systemd.is_pid_1(),
        "programs": found,
    }


async def _doctor(settings: Settings) -> list[dict[str, str]]:
    return [asdict(finding) for finding in await doctor.examine(settings)]


def _summaries(records: Records) -> dict[str, Any]:
    return {
        "sandboxes": [_summary(record) for record in records.sandboxes.values()],
        "templates": [asdict(template) for template in records.templates.values()],
        "unreadable": records.unreadable,
    }


def _summary(record: Record) -> dict[str, Any]:
    value = asdict(record)
    del value["token"]
    spec = value["sandbox"]["spec"]
    spec["env"] = sorted(spec["env"])
    spec["labels"] = sorted(spec["labels"])
    value["outcomes"] = {name: error and error.get("code") for name, error in record.outcomes.items()}
    return value


def _journal(settings: Settings) -> list[dict[str, Any]]:
    return [
        {"operation": entry.operation, "verb": entry.verb, "subject": entry.subject, "steps": entry.steps}
        for entry in Journal(settings.node_folder / "journal").entries()
    ]


def _host(settings: Settings) -> dict[str, Any]:
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    folders = (str(settings.data_folder), str(settings.run_folder))
    return {
        "load": Path("/proc/loadavg").read_text().split(),
        "memory": Path("/proc/meminfo").read_text().splitlines()[:8],
        "pressure": {path.name: path.read_text().splitlines() for path in sorted(Path("/proc/pressure").glob("*"))},
        "mounts": [line for line in mounts if any(folder in line for folder in folders)],
    }


def _events(settings: Settings) -> list[dict[str, Any]]:
    with Client(instance=settings.instance, retry_for=1.0) as client:
        return [event.model_dump(mode="json") for event in deque(client.events(), maxlen=_EVENTS)]


async def _add_logs(settings: Settings, archive: _Archive) -> None:
    places = [*sorted(settings.log_folder.glob("*.log*")), settings.run_folder / "resolver.log"]
    for path in places:
        try:
            archive.add(f"logs/{path.name}", "the end of a log of ours", await run_sync(_end_of, path))
        except OSError as error:
            archive.miss(f"logs/{path.name}", error.strerror or str(error))
    if systemd.installed(settings.instance):
        try:
            said = await systemd.journal(settings.instance)
            archive.add("logs/journalctl.txt", "the daemons' lines in systemd's journal", said)
        except (process.ProgramError, process.ProgramMissingError, process.ProgramTimeoutError) as error:
            archive.miss("logs/journalctl.txt", str(error))


def _end_of(path: Path) -> str:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LOG_BYTES))
        data = file.read(_LOG_BYTES)
    return (data if size <= _LOG_BYTES else data.partition(b"\n")[2]).decode(errors="replace")


def _write(target: Path, data: bytes) -> None:
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise AlreadyExists(f"{target} is there already", hint="name another file: --output FILE") from error
    except OSError as error:
        raise InvalidArgument(f"{target} cannot be written: {error.strerror}") from error
    with open(fd, "wb") as file:
        file.write(data)
