"""Sandboxes on the wire."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from sandkeep.wire.shape import Asked, Duration, Given, ShortText, Size
from sandkeep.wire.timeline import TimelineRules, TimelineSet

Runtime = Literal["gvisor", "runc"]
Persistence = Literal["ephemeral", "volume", "snapshot", "full"]
Network = Literal["internet", "none"]
OnExpiry = Literal["default", "delete"]
OnFailure = Literal["restart", "stop", "leave"]
Commit = Literal["never", "on-stop", "manual"]
Hold = Literal["memory", "disk"]
Phase = Literal[
    "new",
    "starting",
    "running",
    "pausing",
    "paused",
    "resuming",
    "stopping",
    "stopped",
    "archiving",
    "archived",
    "waking",
    "deleting",
    "deleted",
    "failed",
]


class SandboxCreate(Asked):
    """`name` makes it get-or-create. `source`: NAME@SNAPSHOT, whose disk it begins with (and whose template it has). `commit`: of
    persistence=snapshot alone, what becomes of a session at its stop. `grace`: an ephemeral sandbox is deleted this many
    seconds after its last heartbeat. `on_failure`: what follows when its machine ends by itself; default restart, an ephemeral
    one is deleted, and one of persistence=snapshot stopped. `timeline`: when snapshots of it are made by rule, and which stay;
    default: none."""

    name: ShortText | None = None
    template: ShortText = "base"
    runtime: Runtime = "gvisor"
    persistence: Persistence = "volume"
    cpus: float = 2.0
    memory: Size = "1GiB"
    disk: Size = "8GiB"
    pids: int = 4096
    env: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    network: Network = "internet"
    ttl: Duration | None = None
    on_expiry: OnExpiry = "default"
    pause_or_disk: bool = False
    on_failure: OnFailure | None = None
    grace: Duration | None = None
    source: ShortText | None = None
    commit: Commit | None = None
    timeline: TimelineSet | None = None


class SandboxPatch(Asked):
    """Only what is present changes. `ttl` counts from now; null removes the lifetime."""

    labels: dict[str, str] | None = None
    cpus: float | None = None
    memory: Size | None = None
    disk: Size | None = None
    pids: int | None = None
    ttl: Duration | None = None
    on_expiry: OnExpiry | None = None
    pause_or_disk: bool | None = None
    on_failure: OnFailure | None = None


class ConditionView(Given):
    kind: str
    value: bool
    reason: str
    at: datetime


class SandboxView(Given):
    """A sandbox. `template` is the name that was asked for, `template_id` the version it was made from; `trust` is
    "trusted code only" where the runtime shares the host's kernel. `failures`: how often in a row its machine ended by
    itself, or could not be started again; `restart_at`: when the next try is planned. `timeline`: null where it is off."""

    id: str
    name: str | None
    project_id: str
    template: str
    template_id: str
    runtime: Runtime
    trust: Literal["untrusted code", "trusted code only"]
    persistence: Persistence
    cpus: float
    memory: int
    disk: int
    pids: int
    env: dict[str, str]
    labels: dict[str, str]
    network: Network
    ttl: float | None
    on_expiry: OnExpiry
    expires_at: datetime | None
    pause_or_disk: bool
    on_failure: OnFailure = "stop"
    commit: Commit | None = None
    timeline: TimelineRules | None = None
    failures: int = 0
    restart_at: datetime | None = None
    phase: Phase
    hold: Hold | None
    reason: str
    since: datetime
    conditions: list[ConditionView]
    created_at: datetime
    updated_at: datetime


class PauseRequest(Asked):
    """`hold` defaults to disk. `or_disk`: what cannot be saved becomes a stop that keeps the disk, and is said."""

    hold: Hold = "disk"
    or_disk: bool | None = None


class StartRequest(Asked):
    """`rescue`: some more room on its disk for this stay, to clean a full one."""

    rescue: bool = False


class ExecRequest(Asked):
    """`command` is a shell line (run by bash -l -c, or sh) or an argv list. `stdin` is text, or base64 with
    `stdin_encoding`. `timeout` in seconds; then the process group is killed and exit_code is 137. `snapshot_first`: the disk is
    kept as it is before the command runs; if that cannot be done, it does not run."""

    command: str | list[str]
    user: ShortText | None = None
    cwd: ShortText | None = None
    env: dict[str, str] = Field(default_factory=dict)
    timeout: Duration | None = None
    stdin: str | None = None
    stdin_encoding: Literal["text", "base64"] = "text"
    no_resume: bool = False
    snapshot_first: bool = False


class ExecAnswer(Given):
    """exit_code is the command's, or 128+n after signal n. An output that is not UTF-8 comes as base64, and says so."""

    exit_code: int
    signal: int | None = None
    stdout: str
    stderr: str
    stdout_encoding: Literal["text", "base64"] = "text"
    stderr_encoding: Literal["text", "base64"] = "text"
    truncated: bool = False
    timed_out: bool = False
    out_of_memory: bool = False
    duration: float
    pid: int


class CheckView(Given):
    name: str
    ok: bool
    detail: str


class ReceiptView(Given):
    """What was checked before the sandbox was let into the world when it last came back, or was made from another. `event`:
    resume, fork, rollback."""

    event: str
    at: datetime
    checks: list[CheckView]


class StatsView(Given):
    """Live figures; null where there is no machine."""

    sandbox_id: str
    cpu_seconds: float | None
    memory: int | None
    memory_limit: int
    processes: int | None
    disk: int | None
    disk_limit: int


class NextStep(Given):
    """What comes by itself; `at` is null when nobody knows when."""

    what: str
    at: datetime | None


class Remedy(Given):
    """A command, and what it does."""

    command: str
    what: str


class WhyView(Given):
    """What a sandbox does (`doing`), since when, why, what comes next, and what its owner can do."""

    sandbox_id: str
    name: str | None
    phase: Phase
    doing: str
    since: datetime
    because: list[str]
    next: list[NextStep]
    can: list[Remedy]


class LogView(Given):
    """The end of what the runtime and the agent printed."""

    text: str
