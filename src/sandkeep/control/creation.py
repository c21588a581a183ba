"""What a create writes before the node is asked: get-or-create by name, and the outcome of an idempotency key."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from sandkeep.control.allowance import Quota
from sandkeep.control.events import Ledger
from sandkeep.domain.errors import AlreadyExists, Busy, Conflict, NotFound
from sandkeep.domain.event import EventKind
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.sandbox import Phase, Sandbox, Spec, Status, differences
from sandkeep.domain.template import TemplatePhase
from sandkeep.store import idempotency as idempotency_store
from sandkeep.store import sandboxes as store
from sandkeep.store import templates as template_store
from sandkeep.store.database import Transaction


@dataclass(frozen=True)
class Fork:
    """origin: the snapshot, None for a file; memory: of which it has the memory, too; request: what was asked for, as text, which
    a retry with the same idempotency key repeats."""

    origin: str | None
    memory: bool
    request: str


async def intend(
    ledger: Ledger,
    now: float,
    project_id: str,
    name: str | None,
    spec: Spec,
    key: str | None,
    quota: Quota,
    fork: Fork | None,
) -> tuple[Sandbox, bool]:
    """The sandbox that is to be made, or the one that is there already (False), which counts for no quota. `key`: the
    idempotency key; of a fork, only that finds one that is there, a name does not. Raises NotFound, AlreadyExists, Busy,
    Conflict, QuotaExceeded."""
    asked = fork.request if fork else json.dumps([name, asdict(spec)], sort_keys=True)
    fingerprint = hashlib.sha256(asked.encode()).hexdigest()
    transaction = ledger.transaction
    if key is not None:
        before = await made_before(transaction, project_id, key, fingerprint)
        if before is not None:
            made = await store.get(transaction, project_id, before)
            if made is None:
                raise NotFound("what this Idempotency-Key made was deleted", hint="use a fresh key")
            check_stays(made)
            return made, False
    if spec.template or not fork:  # what came out of a file has none here, and its forks neither
        template = await template_store.get(transaction, project_id, spec.template)
        if template is None or template.phase is not TemplatePhase.READY:
            state = f"is {template.phase}" if template else "does not exist"
            raise NotFound(
                f"template {spec.template[:64]!r} {state}",
                hint="sandkeep template list shows those that are there; sandkeep setup builds `base`",
                field="template",
            )
        spec = replace(spec, template=template.id, template_name=template.name)
    if name is not None:
        existing = await store.get(transaction, project_id, name)
        if existing is not None:
            check_stays(existing)
            if fork:
                raise AlreadyExists(
                    f"a sandbox named {name} exists",
                    hint=f"choose another name (--name), or delete that one: sandkeep delete {name}",
                    existing=existing.id,
                )
            fields = differences(spec, existing.spec)
            if fields:
                raise AlreadyExists(
                    f"a sandbox named {name} exists with another {', '.join(fields)}",
                    hint="choose another name, or update or delete that one",
                    fields=fields,
                    existing=existing.id,
                )
            return existing, False
    await quota.take(transaction, project_id)
    imported = fork is not None and fork.origin is None
    lifetime = spec.lifetime
    sandbox = Sandbox(
        id=new_id(IdKind.SANDBOX),
        project_id=project_id,
        name=name,
        spec=spec,
        status=Status(Phase.STARTING, reason="being imported" if imported else "being created", since=now),
        epoch=1,
        created_at=now,
        updated_at=now,
        expires_at=lifetime.ends(now),
        operation=new_id(IdKind.OPERATION),
        origin=fork.origin if fork else None,
        origin_memory=fork.memory if fork else False,
    )
    await store.add(transaction, sandbox)
    if key is not None:
        await idempotency_store.add(transaction, project_id, key, fingerprint, sandbox.id, now)
    await ledger.tell(EventKind.SANDBOX_CREATED, project_id, sandbox.id, name=name, template=spec.template_name)
    return sandbox, True


async def made_before(transaction: Transaction, project_id: str, key: str, fingerprint: str) -> str | None:
    """The id of what this idempotency key made. Raises Conflict when it was for another request."""
    before = await idempotency_store.get(transaction, project_id, key)
    if before is None:
        return None
    if before[0] != fingerprint:
        raise Conflict("this Idempotency-Key was used for another request", hint="use a fresh key")
    return before[1]


def check_stays(existing: Sandbox) -> None:
    """Raises Busy when a create meets one that is about to be gone."""
    if existing.status.phase is Phase.DELETING:
        raise Busy("it is being deleted", hint="try again in a moment", retry_after=1)
