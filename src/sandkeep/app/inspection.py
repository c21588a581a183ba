"""`sandkeep fsck`: the node's records against kernel and pool, from outside; runs also while both daemons are dead."""

from typing import Any

from sandkeep.app import wiring
from sandkeep.app.server import acting_as, database_of
from sandkeep.app.settings import Settings
from sandkeep.app.standalone import require_root
from sandkeep.domain.errors import Conflict, Unavailable
from sandkeep.domain.sandbox import TRANSITIONAL, Phase
from sandkeep.engine import fsck
from sandkeep.store import sandboxes


async def inspect(settings: Settings) -> dict[str, Any]:
    """{'findings': [...], 'counts': {...}}. Changes nothing."""
    require_root()
    parts = wiring.make_parts(settings)
    await parts.disks.open()
    for runtime in parts.runtimes.values():
        await runtime.open()
    parts.records.load()
    result = await fsck.check(parts)
    result["findings"] += await _against_database(settings, parts.records.sandboxes)
    return result


async def _against_database(settings: Settings, records: dict[str, Any]) -> list[dict[str, str]]:
    subject = "postgresql" if settings.database_url else str(settings.database)
    if not settings.database_url and not settings.database.exists():
        return [{"kind": "database.missing", "subject": subject, "detail": "there is no database"}]
    database = None
    try:
        with acting_as(settings.user):
            database = database_of(settings, read_only=True)
            if await database.look() is None:
                return [{"kind": "database.missing", "subject": subject, "detail": "the database is empty"}]
        damage = await database.damage()
        async with database.transaction() as transaction:
            rows = await sandboxes.phases(transaction)
    except Unavailable as error:
        return [{"kind": "database.unavailable", "subject": subject, "detail": error.message}]
    except Conflict as error:
        return [{"kind": "database.damaged", "subject": subject, "detail": error.message}]
    finally:
        if database is not None:
            await database.close()
    findings = [{"kind": "database.damaged", "subject": subject, "detail": damage}] if damage else []
    for sandbox_id, phase in rows.items():
        record = records.get(sandbox_id)
        if record is None and phase not in TRANSITIONAL and phase != Phase.FAILED:
            detail = f"the server says {phase}, the node has no record"
            findings.append({"kind": "sandbox.unknown_to_node", "subject": sandbox_id, "detail": detail})
        elif phase == Phase.FAILED and record is not None and record.phase is Phase.STOPPED:
            continue  # to the node a sandbox that is left as it is (on_failure=leave) is a stopped one
        elif record is not None and phase not in TRANSITIONAL and record.phase != phase:
            detail = f"the server says {phase}, the node says {record.phase}"
            findings.append({"kind": "sandbox.disagreement", "subject": sandbox_id, "detail": detail})
    for sandbox_id in records.keys() - rows.keys():
        if records[sandbox_id].phase is not Phase.DELETED:
            findings.append(
                {"kind": "sandbox.unknown_to_server", "subject": sandbox_id, "detail": "the server has no record of it"}
            )
    return findings
