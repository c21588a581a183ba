"""`sandkeep fsck`: the node's records against kernel and pool, from outside; runs also while both daemons are dead.
`--repair` mends what can be mended without losing data."""

from typing import Any

from sandkeep import __version__
from sandkeep.app import wiring
from sandkeep.app.daemon import holder, only_one
from sandkeep.app.server import acting_as, database_of
from sandkeep.app.settings import Settings
from sandkeep.app.standalone import require_root
from sandkeep.control.keys import DEFAULT_PROJECT
from sandkeep.domain.errors import Conflict, Unavailable
from sandkeep.domain.sandbox import TRANSITIONAL, Phase, Sandbox
from sandkeep.drivers.runner.remote import remote_runner
from sandkeep.engine import fsck, writer
from sandkeep.engine.records import Record, Records
from sandkeep.engine.repair import Step
from sandkeep.engine.repair import plan as plan_of
from sandkeep.engine.repair import repair as repair_node
from sandkeep.store import keys, sandboxes
from sandkeep.store.database import Database


async def inspect(settings: Settings) -> dict[str, Any]:
    """{'findings': [...], 'counts': {...}}. Changes nothing."""
    require_root()
    parts = wiring.make_parts(settings)
    await parts.disks.open()
    for runtime in parts.runtimes.values():
        await runtime.open()
    parts.records.load()
    result = await fsck.check(parts)
    if not holder(settings.run_folder, "runner"):  # else it may be at work on them
        result["findings"] += [
            {"kind": "journal.left", "subject": path.stem, "detail": "an operation was interrupted"}
            for path in sorted((settings.node_folder / "journal").glob("*.journal"))
        ]
    result["findings"] += await _against_database(settings, parts.records.sandboxes)
    return result


async def plan(settings: Settings) -> list[Step]:
    """What a repair would do, and who. Changes nothing."""
    return plan_of((await inspect(settings))["findings"])


async def repair(settings: Settings) -> None:
    """By the runner, or in its place while there is none: nobody else starts it meanwhile. Raises Conflict for data of a
    newer version."""
    require_root()
    writer.refuse_newer(settings.node_folder, __version__)
    if holder(settings.run_folder, "runner"):
        async with remote_runner(str(settings.runner_socket), __version__) as runner:
            await runner.repair()
        return
    try:
        with only_one(settings.run_folder, "runner"):
            await repair_node(wiring.make_parts(settings))
    except FileNotFoundError as error:
        raise Conflict("the instance's run folder is not there", hint="sandkeep up does the same repairs") from error


async def apart(database: Database, settings: Settings) -> str:
    """Why server and node are not of one installation, as far as what they keep tells; empty when they are."""
    theirs = Records(settings.node_folder).installation
    async with database.transaction() as transaction:
        ours = await keys.project_by_name(transaction, DEFAULT_PROJECT)
    if theirs is None or ours is None or theirs == ours:
        return ""
    return f"the node served installation {theirs}, the database is of {ours}"


async def _against_database(settings: Settings, records: dict[str, Record]) -> list[dict[str, str]]:
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
            rows = {sandbox.id: sandbox for sandbox in await sandboxes.everywhere(transaction)}
        strangers = await apart(database, settings)
    except Unavailable as error:
        return [{"kind": "database.unavailable", "subject": subject, "detail": error.message}]
    except Conflict as error:
        return [{"kind": "database.damaged", "subject": subject, "detail": error.message}]
    finally:
        if database is not None:
            await database.close()
    findings = [{"kind": "database.damaged", "subject": subject, "detail": damage}] if damage else []
    if strangers:
        findings.append({"kind": "installation.other", "subject": subject, "detail": strangers})
    for sandbox_id, sandbox in rows.items():
        record = records.get(sandbox_id)
        found = _disagreement(sandbox, record)
        if found:
            findings.append({"kind": found[0], "subject": sandbox_id, "detail": found[1]})
        fields = _spec_differences(sandbox, record) if record else []
        if fields:
            detail = f"server and node differ in {', '.join(fields)}"
            findings.append({"kind": "sandbox.spec_disagreement", "subject": sandbox_id, "detail": detail})
    for sandbox_id in records.keys() - rows.keys():
        if records[sandbox_id].phase is not Phase.DELETED:
            findings.append(
                {"kind": "sandbox.unknown_to_server", "subject": sandbox_id, "detail": "the server has no record of it"}
            )
    return findings


def _disagreement(sandbox: Sandbox, record: Record | None) -> tuple[str, str] | None:
    """Kind and detail."""
    phase = sandbox.status.phase
    if phase in TRANSITIONAL or (phase is Phase.FAILED and (record is None or record.phase is Phase.STOPPED)):
        return None  # to the node a sandbox that is left as it is (on_failure=leave) is a stopped one
    if record is None:
        return "sandbox.unknown_to_node", f"the server says {phase}, the node has no record"
    if record.phase is not phase:
        return "sandbox.disagreement", f"the server says {phase}, the node says {record.phase}"
    return None


def _spec_differences(sandbox: Sandbox, record: Record) -> list[str]:
    """Fields of what the owner asked for that the node keeps, too."""
    if sandbox.status.phase in TRANSITIONAL or record.phase is Phase.DELETED:
        return []
    server, node = sandbox.spec, record.spec
    return [name for name in ("limits", "labels", "lifetime") if getattr(server, name) != getattr(node, name)]
