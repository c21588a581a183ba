"""The checks before a machine that was restored, or made from another's disk, is let into the world: whether all that was agreed
with its owner holds. Called while nothing but the host's own traffic passes; a check that fails keeps it so.
"""

from dataclasses import dataclass, replace

from sandkeep.contracts.guest import Resumed
from sandkeep.domain.errors import Internal
from sandkeep.domain.receipt import Check, Receipt
from sandkeep.engine.journal import Entry
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Record


@dataclass(frozen=True)
class Came:
    """Where it came from. owner: the sandbox whose generation it is; resumed: what its agent told, if it has memory."""

    event: str
    owner: str
    generation: str
    resumed: Resumed | None = None


async def admit(parts: Parts, record: Record, came: Came, entry: Entry) -> Record:
    """The record with the receipt; its network is open. Raises Internal, naming the check that failed: it stays closed then."""
    record = await _check(parts, record, came)
    entry.step("network.unblock")
    await parts.networks.unblock(parts.networks.describe(record.id, record.slot, record.spec.network))
    return record


async def _check(parts: Parts, record: Record, came: Came) -> Record:
    checks = (
        await _disk(parts, record, came),
        *_memory(parts, record, came),
        await _network(parts, record),
        await _limits(parts, record),
        *await _guest(parts, record),
        *_terms(parts, record),
    )
    receipt = Receipt(came.event, parts.clock.now(), checks)
    wrong = receipt.failed
    if wrong:
        raise Internal(
            f"after its {came.event} its {wrong.name} is not as agreed: {wrong.detail}",
            hint="nothing was let in; try again, and if it stays so: sandkeep doctor",
            check=wrong.name,
        )
    return replace(record, receipt=receipt)


async def _disk(parts: Parts, record: Record, came: Came) -> Check:
    found = await parts.disks.came_from(record.id, came.owner, came.generation)
    if found is None:
        return Check("disk", True, f"{came.generation}, as far as this disk driver can tell")
    return Check("disk", found, came.generation if found else f"it does not come from {came.generation}")


def _memory(parts: Parts, record: Record, came: Came) -> tuple[Check, ...]:
    told = came.resumed
    if told is None:
        return ()
    fresh = told.draw not in parts.draws
    parts.draws[told.draw] = None
    while len(parts.draws) > _REMEMBERED:
        del parts.draws[next(iter(parts.draws))]
    return (
        Check("memory", True, f"{came.generation}, its checksums verified"),
        Check("clock", True, f"{told.behind:+.3f} s behind the host's"),
        Check(
            "random", fresh, "the guest's kernel draws anew" if fresh else "it drew what another sandbox drew before"
        ),
    )


_REMEMBERED = 4096
"""Draws of restored guests: one that comes twice is a twin's."""


async def _network(parts: Parts, record: Record) -> Check:
    attachment = parts.networks.describe(record.id, record.slot, record.spec.network)
    missing = await parts.networks.missing(attachment)
    if missing:
        return Check("network", False, f"not in the kernel: {missing}")
    return Check("network", True, f"{record.spec.network} at {attachment.address}")


async def _limits(parts: Parts, record: Record) -> Check:
    wrong = await parts.runtime(record.spec.runtime).other_limits(record.machine or "", record.spec.limits)
    return Check("limits", not wrong, wrong or "as in its spec")


async def _guest(parts: Parts, record: Record) -> tuple[Check, ...]:
    """What answers at its address is itself, with its environment. Names only: values are secrets."""
    endpoint = parts.endpoint(record)
    has = await parts.guest.environment(endpoint)
    itself = has.get("SANDKEEP_SANDBOX_ID") == record.id
    wrong = sorted(name for name, value in record.spec.env.items() if has.get(name) != value)
    return (
        Check(
            "address", itself, f"it answers at {endpoint.address}" if itself else f"another is at {endpoint.address}"
        ),
        Check("environment", not wrong, f"wrong: {', '.join(wrong)}" if wrong else "as in its spec"),
    )


def _terms(parts: Parts, record: Record) -> tuple[Check, ...]:
    """What no machine shows: the record on disk, by which the node goes after a crash, says the same. A fork has none yet."""
    kept = parts.records.stored(record.id)
    agreed, found = record.spec, kept.spec if kept else record.spec
    timers = agreed.lifetime == found.lifetime and agreed.timeline == found.timeline
    return (
        Check("labels", agreed.labels == found.labels, ", ".join(sorted(found.labels)) or "none"),
        Check(
            "timers", timers, f"ends {found.lifetime.ttl:g} s after it began" if found.lifetime.ttl else "no end is set"
        ),
    )
