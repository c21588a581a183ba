"""The goals of the platform's speed, as its plan states them: for a quiet machine, p50, a warm template cache."""

from dataclasses import dataclass
from enum import StrEnum


class Unit(StrEnum):
    MS = "ms"
    RATE = "MB/s"
    SIZE = "MB"
    CORE = "% of a core"


@dataclass(frozen=True)
class Goal:
    """limit: in the row's unit; ratio: of ours to the bare primitive, which decides where there is one. Rates have to be
    at least that much, everything else at most."""

    limit: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table. bare: what stands beside it."""

    key: str
    title: str
    unit: Unit
    bare: str
    gvisor: Goal | None = None
    runc: Goal | None = None

    def goal(self, runtime: str) -> Goal | None:
        return self.gvisor if runtime == "gvisor" else self.runc


_MS = Unit.MS
_RUN = "disk clone, run, exec true"
_PAUSE = "quiesce, checkpoint, fsync, checksum, snapshot, kill"
_KEEP = "subvolume snapshot, sync"
_BACK = "the same, delete --force, run, exec true"
_SAVE = "checkpoint --leave-running"
_TWIN = "one checkpoint, a restore and exec by agent of each"
_REPLACE = "checkpoint, kill, restore, exec by agent"
_DROP = "subvolume delete, the same wait"
_RESUME = "checksum, group, restore, exec by agent"

ROWS: tuple[Row, ...] = (
    Row("create", "create to first finished exec", _MS, _RUN, Goal(260, 1.5), Goal(90, 1.8)),
    Row("exec", "exec true, through SDK and server", _MS, "runtime's exec true", Goal(30, 1.0), Goal(10, 0.5)),
    Row("pause-memory", "pause, hold=memory", _MS, "runtime's pause", Goal(15), Goal(15)),
    Row("resume-memory", "resume, hold=memory", _MS, "runtime's resume", Goal(15), Goal(15)),
    Row("pause-0", "pause to disk, idle", _MS, _PAUSE, Goal()),
    Row("resume-0", "resume from disk to first exec, idle", _MS, _RESUME, Goal()),
    Row("pause-64", "pause to disk, 64 MB dirty", _MS, _PAUSE, Goal(260, 1.4)),
    Row("resume-64", "resume from disk to first exec, 64 MB dirty", _MS, _RESUME, Goal(330, 1.4)),
    Row("pause-256", "pause to disk, 256 MB dirty", _MS, _PAUSE, Goal()),
    Row("resume-256", "resume from disk to first exec, 256 MB dirty", _MS, _RESUME, Goal()),
    Row("stop", "stop", _MS, "runtime's delete --force", Goal(60), Goal(40)),
    Row("start", "start to first exec", _MS, "run, exec true", Goal(260, 1.5), Goal(90, 1.8)),
    Row("delete", "delete, acknowledged", _MS, "delete --force, subvolume", Goal(50), Goal(40)),
    Row("write", "100 MB in", Unit.RATE, "same client, straight to the agent", Goal(150, 0.6), Goal(300, 0.6)),
    Row("read", "100 MB out", Unit.RATE, "same client, straight to the agent", Goal(150, 0.6), Goal(300, 0.6)),
    Row("copy", "100 MB copied on the host's pool", Unit.RATE, "", Goal(), Goal()),
    Row("burst", "20 creates at once, all with first exec", _MS, "20 x the same at once", Goal(3200), Goal(1000)),
    Row("snapshot", "disk snapshot of 10,000 files, running", _MS, _KEEP, Goal(40), Goal(40)),
    Row("snapshot-20", "the same, 20 MB dirty", _MS, _KEEP, Goal(120), Goal(120)),
    Row("fork-1", "fork of it, to first exec", _MS, _RUN, Goal(260), Goal(90)),
    Row("fork-10", "10 forks of it at once, all with first exec", _MS, "10 x the same at once", Goal(2000), Goal(700)),
    Row("diff", "diff of 10,000 files, 100 changes", _MS, "btrfs send --no-data, unread", Goal(150), Goal(150)),
    Row("diff-now", "the same with the disk as it is now", _MS, "snapshot, sync, the same", Goal(), Goal()),
    Row("rollback", "rollback, the moment before kept, to first exec", _MS, _BACK, Goal(260), Goal(90)),
    Row("felt-64", "full snapshot: the guest stands still, 64 MB dirty", _MS, _SAVE, Goal(200)),
    Row("felt-256", "the same, 256 MB dirty", _MS, _SAVE, Goal(450)),
    Row("felt-1024", "the same, 1,024 MB dirty", _MS, _SAVE, Goal(1000)),
    Row("fork-memory-1", "fork with memory of what runs, to first exec", _MS, _TWIN, Goal(400)),
    Row("fork-memory-10", "10 of these at once, all with first exec", _MS, _TWIN, Goal(1600)),
    Row("fork-memory-100", "100 of these at once, all with first exec", _MS, _TWIN, Goal(16_000)),
    Row("rollback-memory", "rollback with memory, the moment before kept, too", _MS, _REPLACE, Goal(450)),
    Row("space", "200 snapshots deleted, to their room in the pool", _MS, _DROP, Goal(5000), Goal(5000)),
    Row("archive-23", "archive of a 23 MB change, read back", _MS, "tar of the 23 MB, fsync", Goal(500), Goal(500)),
    Row("archive-1000", "first archive of 1 GB, read back", _MS, "tar of it, fsync", Goal(8000), Goal(8000)),
    Row("wake-1000", "wake of 1 GB", _MS, "untar, sync", Goal(5000), Goal(5000)),
    Row("idle-memory", "idle: fall of MemAvailable, each", Unit.SIZE, "bare machines", Goal(18), Goal(10)),
    Row("idle-cpu", "100 idle: CPU in all", Unit.CORE, "bare machines", Goal(6), Goal(3)),
    Row("server", "server, resident with 100 sandboxes", Unit.SIZE, "", Goal(130), Goal(130)),
    Row("runner", "runner, resident with 100 sandboxes", Unit.SIZE, "", Goal(100), Goal(100)),
)
BY_KEY = {row.key: row for row in ROWS}
