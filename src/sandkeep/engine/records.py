"""The durable record of what lives on this node: one file per sandbox and per template, replaced atomically.

A record is written before its call is acknowledged; it is the commit point of every operation. Each carries a checksum of
itself, so that damage is noticed. The folder is root:0700, since records hold the credential of the agent and the
sandbox's environment.
"""

import base64
import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from sandkeep.domain.ids import is_id
from sandkeep.domain.node import Observed, SandboxOnNode, SnapshotOnNode, TemplateOnNode
from sandkeep.domain.receipt import Receipt, receipt_from
from sandkeep.domain.restart import OnFailure
from sandkeep.domain.sandbox import (
    Commit,
    Condition,
    ConditionKind,
    Hold,
    Lifetime,
    Limits,
    NetworkMode,
    OnExpiry,
    Persistence,
    Phase,
    RuntimeKind,
    Spec,
)
from sandkeep.domain.snapshot import Cause, SnapshotKind
from sandkeep.domain.timeline import timeline_from
from sandkeep.engine.storage import trouble, writing
from sandkeep.lib.files import (
    NO_FILE,
    discard_unfinished,
    read_plain,
    remove_durably,
    sync_folder,
    write_durably,
    write_json_durably,
)
from sandkeep.telemetry.log import log

_KEPT_OUTCOMES = 16
T = TypeVar("T", "Record", TemplateOnNode, "Kept")


@dataclass(frozen=True)
class Generation:
    """One moment kept by a pause: its memory files, what a restore needs, and a checksum for each file."""

    id: str
    created_at: float
    files: dict[str, str]
    requires: dict[str, Any]


@dataclass(frozen=True)
class Woken:
    """How a disk that was unpacked can be compared with its archive: the note on it, and its number (contracts.disks.mark);
    first, stored: as archive.vault.Unpacked has them."""

    mark: str
    moment: int
    first: int
    stored: str


@dataclass(frozen=True)
class Archived:
    """What the node must know of a sandbox's archive: its data key, wrapped; of the newest manifest that was verified, number and
    hash (0 and '' before there is one), bytes of content, and the memory in it. woken: of the disk that was unpacked from it."""

    key: str = field(repr=False)
    sequence: int = 0
    hash: str = ""
    size: int = 0
    at: float = 0.0
    memory: Generation | None = None
    woken: Woken | None = None


@dataclass(frozen=True)
class Foreign:
    """A generation whose memory came from another sandbox: which one, and what opens the agent in it."""

    generation: str
    origin: str
    token: str = field(repr=False)


ANEW = {"": ""}
"""Owed to a disk that came from another sandbox's for good: an identity that nobody had before."""


@dataclass(frozen=True)
class Record:
    """One sandbox as this node must remember it. `phase` is settled: running, paused, stopped, archived, failed or deleted (a
    tombstone). `boots` numbers its machines, `exited` is that of the one that ended by itself (0 when it was asked for, or
    another followed), `rescue` the bytes of disk above its limit that it has for now, `agent` the folder of the agent that
    its machine or generation goes on with, `head` the snapshot that its disk came from last.
    `archive`: what there is of it in the store; it is all that there is when the phase is archived.
    `point`: where each session of persistence=snapshot starts. `receipt`: what was checked when it last came back. `owed`: the
    identity (contents in base64 by name) that its disk had before it became another sandbox's, until it is on it again, or
    ANEW. `foreign`: of the generation that it was imported with.
    `outcomes`: operation id -> error, or None for success."""

    sandbox: SandboxOnNode
    epoch: int
    slot: int
    token: str = field(repr=False)
    phase: Phase = Phase.STOPPED
    hold: Hold | None = None
    reason: str = ""
    machine: str | None = None
    boots: int = 0
    generation: Generation | None = None
    conditions: tuple[Condition, ...] = ()
    outcomes: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    exited: int = 0
    rescue: int = 0
    agent: str = ""
    head: str = ""
    point: Generation | None = None
    receipt: Receipt | None = None
    owed: dict[str, str] | None = field(default=None, repr=False)
    archive: Archived | None = None
    foreign: Foreign | None = field(default=None, repr=False)

    @property
    def disk_limit(self) -> int:
        """Bytes: what its disk and generations may hold now."""
        return self.spec.limits.disk + self.rescue

    @property
    def owed_identity(self) -> dict[str, bytes] | None:
        """None: none, or ANEW."""
        return (
            None
            if self.owed in (None, ANEW)
            else {name: base64.b64decode(text) for name, text in (self.owed or {}).items()}
        )

    @property
    def id(self) -> str:
        return self.sandbox.id

    @property
    def spec(self) -> Spec:
        return self.sandbox.spec

    def observed(self) -> Observed:
        return Observed(self.id, self.epoch, self.phase, self.hold, self.reason, self.conditions, exited=self.exited)

    def with_condition(self, kind: ConditionKind, value: bool, reason: str, at: float) -> "Record":
        kept = tuple(c for c in self.conditions if c.kind is not kind)
        return replace(self, conditions=(*kept, Condition(kind, value, reason, at)))

    def without_condition(self, kind: ConditionKind) -> "Record":
        return replace(self, conditions=tuple(c for c in self.conditions if c.kind is not kind))

    def with_outcome(self, operation_id: str, error: dict[str, Any] | None) -> "Record":
        kept = dict(list(self.outcomes.items())[-(_KEPT_OUTCOMES - 1) :])
        return replace(self, outcomes={**kept, operation_id: error})


@dataclass(frozen=True)
class Kept:
    """A snapshot, and the generation of its sandbox that holds it. agent: the folder of the agent that its memory goes on
    with; origin: the sandbox that it was taken of, if that is another; token: what opens the agent in that memory then;
    archive: what there is of it in the store, which is all that there is when it is not `here`."""

    snapshot: SnapshotOnNode
    generation: Generation
    agent: str = ""
    origin: str = ""
    token: str = field(default="", repr=False)
    archive: Archived | None = None

    @property
    def id(self) -> str:
        return self.snapshot.id

    @property
    def here(self) -> bool:
        """Whether its generation is in the pool."""
        return self.snapshot.archived is None


def spec_from_json(data: dict[str, Any]) -> Spec:
    limits, lifetime = data["limits"], data["lifetime"]
    return Spec(
        template=data["template"],
        template_name=data["template_name"],
        runtime=RuntimeKind(data["runtime"]),
        persistence=Persistence(data["persistence"]),
        limits=Limits(**limits),
        env=dict(data["env"]),
        labels=dict(data["labels"]),
        network=NetworkMode(data["network"]),
        lifetime=Lifetime(lifetime["ttl"], OnExpiry(lifetime["on_expiry"]), lifetime["grace"]),
        pause_or_disk=data["pause_or_disk"],
        on_failure=OnFailure(data.get("on_failure", OnFailure.STOP)),
        commit=Commit(data["commit"]) if data.get("commit") else None,
        timeline=timeline_from(data.get("timeline") or {}),
    )


def condition_from_json(data: dict[str, Any]) -> Condition:
    return Condition(ConditionKind(data["kind"]), bool(data["value"]), data["reason"], data["at"])


def sandbox_from_json(data: dict[str, Any]) -> SandboxOnNode:
    return SandboxOnNode(
        data["id"], data["project_id"], spec_from_json(data["spec"]), data.get("name"), data.get("created_at", 0.0)
    )


def _record_from_json(data: dict[str, Any]) -> Record:
    generation = data["generation"]
    return Record(
        sandbox=sandbox_from_json(data["sandbox"]),
        epoch=data["epoch"],
        slot=data["slot"],
        token=data["token"],
        phase=Phase(data["phase"]),
        hold=Hold(data["hold"]) if data["hold"] else None,
        reason=data["reason"],
        machine=data["machine"],
        boots=data["boots"],
        generation=Generation(**generation) if generation else None,
        conditions=tuple(condition_from_json(c) for c in data["conditions"]),
        outcomes=data["outcomes"],
        exited=data.get("exited", 0),
        rescue=data.get("rescue", 0),
        agent=data.get("agent", ""),
        head=data.get("head", ""),
        point=Generation(**data["point"]) if data.get("point") else None,
        receipt=receipt_from(data.get("receipt")),
        owed=data.get("owed"),
        archive=_archived_from_json(data["archive"]) if data.get("archive") else None,
        foreign=Foreign(**data["foreign"]) if data.get("foreign") else None,
    )


def _archived_from_json(data: dict[str, Any]) -> Archived:
    memory, woken = data["memory"], data.get("woken")
    shown = {"memory": Generation(**memory) if memory else None, "woken": Woken(**woken) if woken else None}
    return Archived(**{**data, **shown})


def _kept_from_json(data: dict[str, Any]) -> Kept:
    snapshot = data["snapshot"]
    shown = {**snapshot, "kind": SnapshotKind(snapshot["kind"]), "tags": tuple(snapshot["tags"])}
    shown["cause"] = Cause(snapshot.get("cause", Cause.ASKED))
    return Kept(
        SnapshotOnNode(**shown),
        Generation(**data["generation"]),
        data.get("agent", ""),
        data.get("origin", ""),
        data.get("token", ""),
        _archived_from_json(data["archive"]) if data.get("archive") else None,
    )


def _checksum(data: dict[str, Any]) -> str:
    body = json.dumps(data, separators=(",", ":"), sort_keys=True).encode()
    return hashlib.sha256(body).hexdigest()


def _checked(data: Any, kind: type) -> dict[str, Any]:
    """Raises ValueError for what is not as it was written. Records of versions before checksums have none; what such a one
    may hold is known, so that a damaged key is none of it."""
    if not isinstance(data, dict):
        raise ValueError("it is not an object")
    checksum = data.pop("checksum", None)
    if checksum is None:
        unknown = data.keys() - {one.name for one in fields(kind)}
        if unknown:
            raise ValueError(f"it has no checksum, and holds {', '.join(sorted(unknown))[:100]!r}")
    elif checksum != _checksum(data):
        raise ValueError("its checksum does not fit")
    return data


def _named(path: Path, record: T) -> T:
    """Raises ValueError for the record of something else."""
    if record.id != path.stem:
        raise ValueError(f"it is the record of {record.id}")
    return record


class Records:
    """All records of the node, in memory and on disk. Only the supervisor writes them."""

    def __init__(self, folder: Path) -> None:
        self._sandboxes = folder / "sandboxes"
        self._templates = folder / "templates"
        self._snapshots = folder / "snapshots"
        self._aside = folder / "unreadable"
        self._installation = folder / "installation"
        self.sandboxes: dict[str, Record] = {}
        self.templates: dict[str, TemplateOnNode] = {}
        self.snapshots: dict[str, Kept] = {}
        self.unreadable: list[str] = []

    @property
    def _folders(self) -> tuple[Path, ...]:
        return self._sandboxes, self._templates, self._snapshots

    def discard_unfinished(self) -> None:
        """For recovery, when nobody writes: what a kill left in the middle of a write was never a record."""
        for folder in self._folders:
            discard_unfinished(folder)

    def load(self) -> None:
        """Reads only. Raises OSError for a record that cannot be read now, but perhaps later: whoever took it for lost
        would end a healthy machine."""
        for folder in self._folders:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, data in self._read(self._sandboxes, Record):
            try:
                self.sandboxes[path.stem] = _named(path, _record_from_json(data))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self._cannot_read(path, error)
        self.find_templates()
        for path, data in self._read(self._snapshots, Kept):
            try:
                self.snapshots[path.stem] = _named(path, _kept_from_json(data))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self._cannot_read(path, error)
        aside = {path.stem for path in self._aside.glob("*.json")}
        known = self.sandboxes.keys() | self.templates.keys() | self.snapshots.keys()
        self.unreadable += sorted(aside - set(self.unreadable) - known)

    def find_templates(self) -> None:
        """Also those that were made since: setup writes them beside a runner that serves."""
        for path, data in self._read(self._templates, TemplateOnNode):
            try:
                self.templates[path.stem] = _named(path, TemplateOnNode(**data))
            except (TypeError, ValueError) as error:
                self._cannot_read(path, error)

    def _read(self, folder: Path, kind: type) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in sorted(folder.glob("*.json")):
            if not is_id(path.stem):
                continue
            try:
                yield path, _checked(json.loads(read_plain(path)), kind)
            except ValueError as error:
                self._cannot_read(path, error)
            except FileNotFoundError:
                continue  # fsck reads beside a runner that removes what was deleted
            except OSError as error:
                if error.errno not in {errno.EIO, *NO_FILE}:
                    raise
                self._cannot_read(path, error)

    def _cannot_read(self, path: Path, error: Exception) -> None:
        log("record.unreadable", "error", path=path.name, error=repr(error))
        if path.stem not in self.unreadable:
            self.unreadable.append(path.stem)

    def set_aside(self) -> None:
        """An unreadable record is kept for people, in a folder of its own; what it described is then unknown, and so
        quarantined."""
        for name in self.unreadable:
            for folder in self._folders:
                path = folder / f"{name}.json"
                if os.path.lexists(path):
                    self._aside.mkdir(mode=0o700, exist_ok=True)
                    path.rename(self._aside / path.name)
                    sync_folder(folder)

    def resolve_unreadable(self, name: str, *, forget: bool) -> None:
        """What an unreadable record described has a record again, or was deleted (`forget`: its remains go, too)."""
        self.unreadable = [other for other in self.unreadable if other != name]
        if forget and (self._aside / f"{name}.json").exists():
            remove_durably(self._aside / f"{name}.json")

    @property
    def installation(self) -> str | None:
        """The control plane that this node serves."""
        try:
            return read_plain(self._installation).decode().strip() or None
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:  # as of no other: whoever serves it now says so again
            log("record.unreadable", "error", path=self._installation.name, error=repr(error))
            return None

    def save_installation(self, installation: str) -> None:
        write_durably(self._installation, installation.encode())

    def trouble(self) -> str:
        """Why no record can be written now; '' when it can. Blocks."""
        return trouble(self._sandboxes)

    def save(self, record: Record) -> Record:
        """Durable when it returns. Raises NoCapacity, StorageFailed: the record before it then stands."""
        path, before = self._sandboxes / f"{record.id}.json", self.sandboxes.get(record.id)
        try:
            with writing("the record"):
                _write(path, record)
        except BaseException:
            # The new one may have its name already, when only the sync of the folder failed.
            with contextlib.suppress(OSError):
                if before is not None:
                    _write(path, before)
                else:
                    remove_durably(path)
            raise
        self.sandboxes[record.id] = record
        return record

    def stored(self, sandbox_id: str) -> Record | None:
        """As it is on disk now; None where there is none that can be read."""
        path = self._sandboxes / f"{sandbox_id}.json"
        try:
            return _named(path, _record_from_json(_checked(json.loads(read_plain(path)), Record)))
        except (OSError, KeyError, TypeError, ValueError, AttributeError):
            return None

    def remove(self, sandbox_id: str) -> None:
        with writing("the record"):
            remove_durably(self._sandboxes / f"{sandbox_id}.json")
        self.sandboxes.pop(sandbox_id, None)

    def snapshots_of(self, sandbox_id: str) -> list[Kept]:
        return [kept for kept in self.snapshots.values() if kept.snapshot.sandbox_id == sandbox_id]

    def generations(self) -> dict[str, str]:
        """Generation -> its sandbox, of all that a record or a snapshot needs."""
        paused = {one.id: r.id for r in self.sandboxes.values() for one in (r.generation, r.point) if one}
        return paused | {kept.generation.id: kept.snapshot.sandbox_id for kept in self.snapshots.values() if kept.here}

    def needed(self, generation_id: str, *, but: str = "") -> bool:
        """By a snapshot, or by the record of a sandbox (other than `but`): two of them may share one."""
        records = self.sandboxes.values()
        generations = [r.generation for r in records if r.id != but] + [r.point for r in records]
        generations += [kept.generation for kept in self.snapshots.values() if kept.here]
        return any(one is not None and one.id == generation_id for one in generations)

    def token_in(self, generation_id: str) -> str | None:
        """What opens the agent in this memory, if it was saved of another sandbox than the one that it is now of."""
        foreign = self.foreign(generation_id)
        if foreign:
            return foreign.token
        found = (kept for kept in self.snapshots.values() if kept.generation.id == generation_id and kept.origin)
        return next((kept.token for kept in found if kept.origin != kept.snapshot.sandbox_id), None)

    def foreign(self, generation_id: str) -> Foreign | None:
        """Of a generation that a sandbox was imported with, while that is paused in it."""
        imported = (r.foreign for r in self.sandboxes.values() if r.foreign and r.generation)
        return next((one for one in imported if one.generation == generation_id), None)

    def save_snapshot(self, kept: Kept) -> None:
        with writing("the record"):
            _write(self._snapshots / f"{kept.snapshot.id}.json", kept)
        self.snapshots[kept.snapshot.id] = kept

    def remove_snapshot(self, snapshot_id: str) -> None:
        with writing("the record"):
            remove_durably(self._snapshots / f"{snapshot_id}.json")
        self.snapshots.pop(snapshot_id, None)

    def save_template(self, template: TemplateOnNode) -> None:
        with writing("the record"):
            _write(self._templates / f"{template.id}.json", template)
        self.templates[template.id] = template

    def remove_template(self, template_id: str) -> None:
        with writing("the record"):
            remove_durably(self._templates / f"{template_id}.json")
        self.templates.pop(template_id, None)


def _write(path: Path, record: Record | TemplateOnNode | Kept) -> None:
    data = asdict(record)
    write_json_durably(path, {**data, "checksum": _checksum(data)})
