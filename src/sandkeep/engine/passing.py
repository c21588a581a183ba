"""A moment of a sandbox that is kept for as long as something reads it, under an intent in the journal: what a crash leaves of it
recovery drops, as it drops each generation without a record. Used by browse and portable; fsck knows their verbs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

from sandkeep.domain.errors import SandkeepError
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.engine.lanes import Lanes
from sandkeep.engine.parts import Parts
from sandkeep.telemetry.log import log

DIFF, EXPORT = "diff", "export"
VERBS = frozenset({DIFF, EXPORT})
T = TypeVar("T")


@asynccontextmanager
async def kept(
    parts: Parts, lanes: Lanes, sandbox_id: str, verb: str, deadline: float, take: Callable[[str], Awaitable[T]]
) -> AsyncIterator[tuple[str, T]]:
    """A generation, and what `take` returned, which made it while nobody else changed the sandbox. It lives as long as the
    block. deadline: seconds for `take`."""
    disks, generation = parts.disks, new_id(IdKind.GENERATION)
    entry = parts.journal.begin(new_id(IdKind.OPERATION), verb, sandbox_id)
    try:
        entry.step("generation.begin", generation=generation)
        async with lanes.operate(sandbox_id, None, deadline):
            taken = await take(generation)
        yield generation, taken
    finally:
        with anyio.CancelScope(shield=True):
            try:
                await disks.drop_generation(sandbox_id, generation)
                await disks.sync()  # gone also after a power cut, before the intent is forgotten
            except SandkeepError as error:  # the intent stays, for recovery
                log("undo.failed", "error", what=verb, sandbox=sandbox_id, error=error.message)
            else:
                entry.close()
