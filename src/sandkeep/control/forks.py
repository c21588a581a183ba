"""Forks: new sandboxes that go on from a snapshot of another, each under an identity of its own."""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import anyio

from sandkeep.control.creation import Fork
from sandkeep.control.events import Events
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.control.snapshots import Snapshots, refuse_archived
from sandkeep.control.templates import BUILD_LABEL
from sandkeep.domain.errors import Conflict, SandkeepError, Unsupported
from sandkeep.domain.event import EventKind
from sandkeep.domain.names import check_name
from sandkeep.domain.sandbox import Phase, Sandbox, Spec
from sandkeep.domain.snapshot import Cause, Snapshot, SnapshotKind


class Forks:
    def __init__(self, events: Events, sandboxes: Sandboxes, snapshots: Snapshots) -> None:
        self._events = events
        self._sandboxes = sandboxes
        self._snapshots = snapshots

    async def make(
        self,
        project_id: str,
        reference: str,
        snapshot: str | None,
        *,
        kind: SnapshotKind | None = None,
        count: int,
        name: str | None,
        key: str | None,
        caller: str,
    ) -> list[Sandbox]:
        """With the spec of this one, from the snapshot: all of them, or none. Without a snapshot one is made first, and stays.
        `kind`: with memory and processes or without; None: with, where there are some and the runtime can. `name`: of the
        one, or NAME-1, NAME-2, ... of several; `key`: the idempotency key; `caller`: the key that asks."""
        names: list[str | None] = [name] * count
        if name is not None:
            names = [name if count == 1 else f"{name}-{number}" for number in range(1, count + 1)]
            for one in names:
                check_name(one or "")
        source = await self._sandboxes.get(project_id, reference)
        labels = {name: value for name, value in source.spec.labels.items() if name != BUILD_LABEL}
        spec = replace(source.spec, labels=labels)
        once = key and f"fork/{hashlib.sha256(key.encode()).hexdigest()}"
        if snapshot is None:
            asked = json.dumps([source.id, kind, count, name])
            origin = await self.keep(source, kind, once, "for a fork", asked)
        else:
            origin = await self._snapshots.get(project_id, source.id, snapshot)
            refuse_archived(source, origin)
        memory = origin.kind is SnapshotKind.FULL and kind is not SnapshotKind.DISK
        if kind is SnapshotKind.FULL and not memory:
            raise Conflict(
                f"the snapshot {origin.name or origin.id} has no memory",
                hint="fork its disk (leave out the kind), or the running sandbox",
                field="kind",
            )
        made: dict[int, Sandbox] = {}
        fresh: list[Sandbox] = []
        errors: list[SandkeepError] = []

        async def one_of_them(number: int, name: str | None) -> None:
            fork = Fork(origin.id, memory, json.dumps([source.id, snapshot, count, number, name, kind]))
            try:
                sandbox, new = await self._sandboxes.create(
                    project_id, name, spec, once and f"{once}/{number}", caller, fork=fork
                )
                if new:
                    fresh.append(sandbox)
                made[number] = sandbox
            except SandkeepError as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            for number, each in enumerate(names):
                tasks.start_soon(one_of_them, number, each)
        if errors:
            await self._take_back(fresh, origin if snapshot is None and not once else None)
            raise errors[0]
        forks = [made[number] for number in sorted(made)]
        if fresh:
            await self._tell(source, origin, forks)
        return forks

    async def from_snapshot(
        self,
        project_id: str,
        name: str | None,
        spec: Spec,
        source: str,
        snapshot: str,
        key: str | None,
        caller: str,
    ) -> tuple[Sandbox, bool]:
        """A sandbox of this spec on a copy of a snapshot's disk; its template is the source's. Otherwise as a create; with a name
        that is taken it raises AlreadyExists."""
        found = await self._sandboxes.get(project_id, source)
        origin = await self._snapshots.get(project_id, found.id, snapshot)
        refuse_archived(found, origin)
        spec = replace(spec, template=found.spec.template, template_name=found.spec.template_name)
        asked = json.dumps([name, asdict(spec), origin.id], sort_keys=True)
        return await self._sandboxes.create(project_id, name, spec, key, caller, fork=Fork(origin.id, False, asked))

    async def keep(
        self, source: Sandbox, kind: SnapshotKind | None, key: str | None, reason: str, asked: str
    ) -> Snapshot:
        """The moment that others are to go on from, with memory if there is some and the runtime can. `key`, `asked`: see
        `Snapshots.create`."""
        why: dict[str, Any] = {"reason": reason, "cause": Cause.FORK, "key": key, "asked": asked}
        if kind is None and source.status.phase not in (Phase.STOPPED, Phase.FAILED):
            with suppress(Conflict, Unsupported):  # also when it was stopped meanwhile
                full = SnapshotKind.FULL
                return await self._snapshots.create(source.project_id, source.id, kind=full, **why)
        kind = kind or SnapshotKind.DISK
        return await self._snapshots.create(source.project_id, source.id, kind=kind, **why)

    async def _take_back(self, fresh: list[Sandbox], snapshot: Snapshot | None) -> None:
        """A node that is away deletes them when it is back."""
        for sandbox in fresh:
            with suppress(SandkeepError):
                reason = "another fork of the same request failed"
                await self._sandboxes.delete(sandbox.project_id, sandbox.id, reason=reason)
        if snapshot:
            with suppress(SandkeepError):
                await self._snapshots.delete(snapshot.project_id, snapshot.sandbox_id, snapshot.id)

    async def _tell(self, source: Sandbox, origin: Snapshot, forks: list[Sandbox]) -> None:
        async with self._events.change() as ledger:
            await ledger.tell(
                EventKind.SANDBOX_FORKED,
                source.project_id,
                source.id,
                f"from {origin.name or origin.id}",
                snapshot=origin.id,
                forks=[sandbox.id for sandbox in forks],
            )
