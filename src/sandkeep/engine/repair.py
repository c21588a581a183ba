"""What `sandkeep fsck --repair` makes of each finding: a plan first, then what recovery does anyway, at once.

Nothing that could be somebody's data is in the first table: what has no record stays in quarantine.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import anyio

from sandkeep.domain.errors import SandkeepError
from sandkeep.domain.sandbox import Phase
from sandkeep.engine import lifecycle
from sandkeep.engine.parts import Parts
from sandkeep.engine.recovery import recover
from sandkeep.telemetry.log import log

BY_NODE = {
    "machine.unowned": "end the machine; no disk is touched",
    "machine.dead": "remove what the runtime kept of it",
    "machine.missing": "note that it stopped, and keep its disk (an ephemeral one is deleted, as its owner said)",
    "network.unowned": "take the network away",
    "network.missing": "make it again, or note that the machine has gone",
    "journal.left": "finish or undo the operation that was interrupted",
    "record.tombstone": "go on erasing what was deleted",
}
BY_SERVER = {
    "sandbox.disagreement": "the server follows the node",
    "sandbox.spec_disagreement": "the server follows the node",
    "sandbox.unknown_to_node": "the server notes that it is lost, or that it was deleted",
}
LEFT = {
    "sandbox.unknown_to_server": "sandkeep node adopt --plan",
    "disk.unowned": "sandkeep node quarantine list",
    "generation.unowned": "sandkeep node quarantine list",
    "template.unowned": "sandkeep node quarantine list",
    "record.unreadable": "sandkeep node quarantine list",
    "installation.other": "sandkeep node adopt --plan",
}
_ERASE_WITHIN = 60.0


@dataclass(frozen=True)
class Step:
    """who: node (now), server (within 15 s of its running), or nobody: then `what` says where to go on."""

    kind: str
    subject: str
    who: str
    what: str


def plan(findings: Iterable[dict[str, str]]) -> list[Step]:
    steps = []
    for finding in findings:
        kind, subject = finding["kind"], finding["subject"]
        if kind in BY_NODE:
            steps.append(Step(kind, subject, "node", BY_NODE[kind]))
        elif kind in BY_SERVER:
            steps.append(Step(kind, subject, "server", BY_SERVER[kind]))
        else:
            steps.append(Step(kind, subject, "nobody", LEFT.get(kind, finding["detail"])))
    return steps


async def repair(parts: Parts) -> None:
    """While no runner runs: what it would do at its start, and the erasing that it would do after it."""
    await recover(parts)
    try:
        for record in list(parts.records.sandboxes.values()):
            if record.phase is not Phase.DELETED:
                continue
            try:
                with anyio.fail_after(_ERASE_WITHIN):
                    await lifecycle.erase(parts, record)
                    await parts.disks.sync()
                    parts.records.remove(record.id)
            except (SandkeepError, TimeoutError) as error:
                log("undo.failed", what="erase", sandbox=record.id, error=repr(error))
    finally:
        parts.feed.close()
        parts.deletions.close()
