"""`sandkeep fsck`: the node's records against kernel and pool, from outside; runs also while both daemons are dead."""

import sqlite3
from typing import Any

from sandkeep.app import wiring
from sandkeep.app.settings import Settings
from sandkeep.app.standalone import require_root
from sandkeep.domain.sandbox import TRANSITIONAL, Phase
from sandkeep.engine import fsck


async def inspect(settings: Settings) -> dict[str, Any]:
    """{'findings': [...], 'counts': {...}}. Changes nothing."""
    require_root()
    parts = wiring.make_parts(settings)
    await parts.disks.open()
    for runtime in parts.runtimes.values():
        await runtime.open()
    parts.records.load()
    result = await fsck.check(parts)
    result["findings"] += _against_database(settings, parts.records.sandboxes)
    return result


def _against_database(settings: Settings, records: dict[str, Any]) -> list[dict[str, str]]:
    if not settings.database.exists():
        return [{"kind": "database.missing", "subject": str(settings.database), "detail": "there is no database"}]
    findings = []
    connection = sqlite3.connect(f"file:{settings.database}?mode=ro", uri=True)
    try:
        damage = connection.execute("PRAGMA quick_check").fetchone()[0]
        if damage != "ok":
            findings.append({"kind": "database.damaged", "subject": str(settings.database), "detail": damage})
        rows = dict(connection.execute("SELECT id, phase FROM sandboxes").fetchall())
    finally:
        connection.close()
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
