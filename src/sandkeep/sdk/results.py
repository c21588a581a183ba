"""What the SDK gives back: results of commands, output as it comes, files and their changes."""

import base64
import signal as signals
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

StreamName = Literal["stdout", "stderr", "pty"]
FileType = Literal["file", "directory", "symlink", "other"]


@dataclass(frozen=True, slots=True)
class ProcessResult:
    """How a process ended. `exit_code` is the command's, or 128+n after signal n. `signal`: n, or None."""

    exit_code: int
    signal: int | None = None
    timed_out: bool = False
    out_of_memory: bool = False

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


@dataclass(frozen=True, slots=True)
class ExecResult(ProcessResult):
    """A command that ended, with what it printed. `truncated`: there was more than the server keeps (8 MiB a stream).
    `duration` in seconds, inside the sandbox."""

    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""
    truncated: bool = False
    duration: float = 0.0
    pid: int = 0

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that a process printed. `offset`: of the first one, counting all streams of the process together."""

    stream: StreamName
    data: bytes
    offset: int

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Dropped:
    """So many bytes were printed while nobody was attached, and are gone. The next byte is at `offset`."""

    count: int
    offset: int


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process in a sandbox. `offset`: the end of its output so far. `result` is None while it runs."""

    pid: int
    command: tuple[str, ...]
    cwd: str | None
    offset: int
    result: ProcessResult | None


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file in a sandbox. `size` in bytes; `mode` the permission bits; of a symlink, those of its target."""

    name: str
    path: str
    type: FileType
    size: int
    mode: int
    permissions: str
    owner: str
    group: str
    modified_at: datetime | None
    symlink_target: str | None


@dataclass(frozen=True, slots=True)
class FileEvent:
    """A change under a watched folder. `name` is relative to it; `kind` create, write, remove, rename or chmod."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class TreeResult:
    """A tree that was copied. `skipped`: what was left out and why (the first 100), `skipped_count` of how many."""

    files: int
    folders: int
    symlinks: int
    bytes: int
    skipped: tuple[str, ...] = ()
    skipped_count: int = 0


def exec_result(answer: Mapping[str, Any]) -> ExecResult:
    """From an ExecAnswer. Plain, without a model: this is on the path of every exec."""
    return ExecResult(
        exit_code=answer["exit_code"],
        signal=answer.get("signal"),
        timed_out=answer.get("timed_out", False),
        out_of_memory=answer.get("out_of_memory", False),
        stdout_bytes=_decoded(answer["stdout"], answer.get("stdout_encoding")),
        stderr_bytes=_decoded(answer["stderr"], answer.get("stderr_encoding")),
        truncated=answer.get("truncated", False),
        duration=answer.get("duration", 0.0),
        pid=answer.get("pid", 0),
    )


def process_result(end: Mapping[str, Any]) -> ProcessResult:
    """From the agent's `end` event, or the `ended` of its list."""
    signal = end.get("signal")
    if not isinstance(signal, int) and not end.get("exited", True):
        signal = _signal_of(str(end.get("status", "")))
    code = 128 + signal if isinstance(signal, int) else int(end.get("exitCode", 0))
    return ProcessResult(
        exit_code=code,
        signal=signal if isinstance(signal, int) else None,
        timed_out=bool(end.get("timedOut")),
        out_of_memory=bool(end.get("oomKilled")),
    )


TIMED_OUT = ProcessResult(exit_code=137, signal=9, timed_out=True)


def file_info(entry: Mapping[str, Any]) -> FileInfo:
    """From the agent's EntryInfo."""
    kinds: dict[str, FileType] = {
        "FILE_TYPE_FILE": "file",
        "FILE_TYPE_DIRECTORY": "directory",
        "FILE_TYPE_SYMLINK": "symlink",
    }
    modified = entry.get("modifiedTime")
    try:
        modified_at = datetime.fromisoformat(modified) if isinstance(modified, str) else None
    except ValueError:
        modified_at = None
    return FileInfo(
        name=str(entry.get("name", "")),
        path=str(entry.get("path", "")),
        type=kinds.get(str(entry.get("type")), "other"),
        size=int(entry.get("size", 0)),
        mode=int(entry.get("mode", 0)),
        permissions=str(entry.get("permissions", "")),
        owner=str(entry.get("owner", "")),
        group=str(entry.get("group", "")),
        modified_at=modified_at,
        symlink_target=entry.get("symlinkTarget") or None,
    )


def disk_file(folder: str, item: Mapping[str, Any]) -> FileInfo:
    """From a FileView, of what is in this folder. The owners have no names: nothing runs that knows them."""
    exact = item.get("name_base64")
    name = base64.b64decode(exact).decode("utf-8", "surrogateescape") if exact else str(item["name"])
    kinds = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK}
    modified = item.get("modified_at")
    return FileInfo(
        name=name,
        path=f"{folder.rstrip('/')}/{name}",
        type=item["type"] if item["type"] in kinds else "other",
        size=int(item["size"]),
        mode=int(item["mode"]),
        permissions=stat.filemode(kinds.get(item["type"], 0) | int(item["mode"])),
        owner=str(item["uid"]),
        group=str(item["gid"]),
        modified_at=datetime.fromisoformat(modified) if modified else None,
        symlink_target=item.get("target"),
    )


def _decoded(text: str, encoding: str | None) -> bytes:
    return base64.b64decode(text) if encoding == "base64" else text.encode("utf-8", "surrogatepass")


def _signal_of(status: str) -> int | None:
    """E2B's agents say only `signal: killed`."""
    words = {"killed": "SIGKILL", "terminated": "SIGTERM", "interrupt": "SIGINT", "hangup": "SIGHUP"}
    for word, name in words.items():
        if word in status and hasattr(signals, name):
            return int(getattr(signals, name))
    return None
