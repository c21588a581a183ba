"""Sandboxes in the database."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import and_, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from sandkeep.domain.errors import AlreadyExists
from sandkeep.domain.restart import OnFailure, Restarts
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
    Sandbox,
    Spec,
    Status,
)
from sandkeep.domain.timeline import Timeline, timeline_from
from sandkeep.store.tables import sandboxes as table

# The statements of every request are made once: to build one anew costs SQLAlchemy more than the database needs for it.
_ADD = insert(table)
_SAVE = (
    update(table)
    .where(table.c.id == bindparam("_id"), table.c.epoch == bindparam("_epoch"))
    .values({column.name: bindparam(column.name) for column in table.c})
)
_GET = select(table).where(
    table.c.project_id == bindparam("_project"),
    or_(table.c.id == bindparam("_reference"), table.c.name == bindparam("_reference")),
)
_BY_ID = select(table).where(table.c.id == bindparam("_id"))
_REMOVE = delete(table).where(table.c.id == bindparam("_id"))
_COUNT = select(func.count()).select_from(table).where(table.c.project_id == bindparam("_project"))
_NO_TIMELINE = Timeline()
_EXPIRED = select(table).where(table.c.expires_at <= bindparam("_now"))


def _row(sandbox: Sandbox) -> dict[str, Any]:
    spec, status = sandbox.spec, sandbox.status
    return {
        "id": sandbox.id,
        "project_id": sandbox.project_id,
        "name": sandbox.name,
        "template": spec.template,
        "template_name": spec.template_name,
        "runtime": spec.runtime,
        "persistence": spec.persistence,
        **asdict(spec.limits),
        "env": spec.env,
        "labels": spec.labels,
        "network": spec.network,
        **asdict(spec.lifetime),
        "pause_or_disk": spec.pause_or_disk,
        "on_failure": spec.on_failure,
        "commit_rule": spec.commit,
        "phase": status.phase,
        "hold": status.hold,
        "reason": status.reason,
        "since": status.since,
        "conditions": [asdict(condition) for condition in status.conditions],
        "epoch": sandbox.epoch,
        "operation": sandbox.operation,
        "created_at": sandbox.created_at,
        "updated_at": sandbox.updated_at,
        "expires_at": sandbox.expires_at,
        "failures": sandbox.restarts.failures,
        "restart_at": sandbox.restarts.next_at,
        "ended_machine": sandbox.restarts.machine,
        "origin": sandbox.origin,
        "origin_memory": sandbox.origin_memory,
        "timeline": None if spec.timeline == _NO_TIMELINE else asdict(spec.timeline),
    }


def _sandbox(row: Any) -> Sandbox:
    return Sandbox(
        id=row.id,
        project_id=row.project_id,
        name=row.name,
        spec=Spec(
            template=row.template,
            template_name=row.template_name,
            runtime=RuntimeKind(row.runtime),
            persistence=Persistence(row.persistence),
            limits=Limits(row.cpus, row.memory, row.disk, row.pids),
            env=row.env,
            labels=row.labels,
            network=NetworkMode(row.network),
            lifetime=Lifetime(row.ttl, OnExpiry(row.on_expiry), row.grace),
            pause_or_disk=row.pause_or_disk,
            on_failure=OnFailure(row.on_failure),
            commit=Commit(row.commit_rule) if row.commit_rule else None,
            timeline=timeline_from(row.timeline or {}),
        ),
        status=Status(
            phase=Phase(row.phase),
            hold=Hold(row.hold) if row.hold else None,
            reason=row.reason,
            since=row.since,
            conditions=tuple(
                Condition(ConditionKind(c["kind"]), c["value"], c["reason"], c["at"]) for c in row.conditions
            ),
        ),
        epoch=row.epoch,
        created_at=row.created_at,
        updated_at=row.updated_at,
        expires_at=row.expires_at,
        operation=row.operation,
        restarts=Restarts(row.failures, row.restart_at, row.ended_machine),
        origin=row.origin,
        origin_memory=row.origin_memory,
    )


async def add(connection: AsyncConnection, sandbox: Sandbox) -> None:
    """Raises AlreadyExists when the name is taken."""
    try:
        await connection.execute(_ADD, _row(sandbox))
    except IntegrityError as error:
        raise AlreadyExists(f"a sandbox named {sandbox.name} exists") from error


async def save(connection: AsyncConnection, sandbox: Sandbox, expected_epoch: int) -> bool:
    """Write all of it, if nobody has begun another operation since `expected_epoch`. False: somebody has."""
    done = await connection.execute(_SAVE, {**_row(sandbox), "_id": sandbox.id, "_epoch": expected_epoch})
    return done.rowcount == 1


async def get(connection: AsyncConnection, project_id: str, reference: str) -> Sandbox | None:
    """By id or by name, within the project."""
    row = (await connection.execute(_GET, {"_project": project_id, "_reference": reference})).first()
    return _sandbox(row) if row else None


async def by_id(connection: AsyncConnection, sandbox_id: str) -> Sandbox | None:
    row = (await connection.execute(_BY_ID, {"_id": sandbox_id})).first()
    return _sandbox(row) if row else None


async def count(connection: AsyncConnection, project_id: str) -> int:
    """How many the project has, in whatever phase."""
    return (await connection.execute(_COUNT, {"_project": project_id})).scalar() or 0


async def remove(connection: AsyncConnection, sandbox_id: str) -> bool:
    """False: somebody has removed it."""
    return (await connection.execute(_REMOVE, {"_id": sandbox_id})).rowcount == 1


async def page(
    connection: AsyncConnection,
    project_id: str,
    *,
    limit: int,
    after: tuple[float, str] | None,
    labels: dict[str, str],
    phases: list[Phase],
    name: str | None,
) -> list[Sandbox]:
    """Newest first; `after`: (created_at, id) of the last one seen."""
    conditions = [table.c.project_id == project_id]
    if after:
        at, identifier = after
        conditions.append(or_(table.c.created_at < at, and_(table.c.created_at == at, table.c.id > identifier)))
    if phases:
        conditions.append(table.c.phase.in_([str(phase) for phase in phases]))
    if name is not None:
        conditions.append(table.c.name == name)
    conditions += [table.c.labels[key].as_string() == value for key, value in labels.items()]
    rows = await connection.execute(
        select(table).where(*conditions).order_by(table.c.created_at.desc(), table.c.id).limit(limit)
    )
    return [_sandbox(row) for row in rows]


async def everywhere(connection: AsyncConnection) -> list[Sandbox]:
    """All of all projects: for the reconciler and fsck."""
    return [_sandbox(row) for row in await connection.execute(select(table))]


async def expired(connection: AsyncConnection, now: float) -> list[Sandbox]:
    rows = await connection.execute(_EXPIRED, {"_now": now})
    return [_sandbox(row) for row in rows]


async def expiring(connection: AsyncConnection) -> list[Sandbox]:
    """Those that have a lifetime."""
    return [_sandbox(row) for row in await connection.execute(select(table).where(table.c.expires_at.is_not(None)))]


async def failing(connection: AsyncConnection) -> list[Sandbox]:
    """Those whose machine ended by itself not long ago, planned restarts among them."""
    return [_sandbox(row) for row in await connection.execute(select(table).where(table.c.failures > 0))]


async def made_from(connection: AsyncConnection, template_id: str) -> list[str]:
    return [row.id for row in await connection.execute(select(table.c.id).where(table.c.template == template_id))]


async def with_timeline(connection: AsyncConnection) -> list[Sandbox]:
    """Those of which snapshots are made, or go, by rule."""
    return [_sandbox(row) for row in await connection.execute(select(table).where(table.c.timeline.is_not(None)))]


async def being_forked(connection: AsyncConnection) -> frozenset[str]:
    """Snapshots from which sandboxes are being made now."""
    making = table.c.phase.in_([str(Phase.NEW), str(Phase.STARTING)])
    rows = await connection.execute(select(table.c.origin).where(table.c.origin.is_not(None), making))
    return frozenset(row.origin for row in rows)
