"""Promote: of several forks that tried something one wins, and its state becomes the parent's, under the parent's identity."""

import hashlib
import json
from contextlib import suppress

from sandkeep.contracts.clock import Clock
from sandkeep.control.creation import made_before
from sandkeep.control.events import Events, Ledger
from sandkeep.control.forks import Forks
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.control.snapshots import Snapshots
from sandkeep.domain.errors import Conflict, InvalidArgument, SandkeepError, Unsupported
from sandkeep.domain.event import EventKind
from sandkeep.domain.quantities import format_size
from sandkeep.domain.sandbox import Persistence, Phase, Sandbox
from sandkeep.domain.snapshot import Cause, SnapshotKind
from sandkeep.store import idempotency as idempotency_store
from sandkeep.store import snapshots as snapshot_store


class Promotion:
    def __init__(self, events: Events, sandboxes: Sandboxes, snapshots: Snapshots, forks: Forks, clock: Clock) -> None:
        self._events = events
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._forks = forks
        self._clock = clock

    async def promote(
        self,
        project_id: str,
        fork: str,
        into: str,
        *,
        kind: SnapshotKind | None,
        delete_others: bool,
        key: str | None = None,
    ) -> Sandbox:
        """The moment before is kept as a snapshot of the parent, and so is the one that it then goes on from. The fork itself
        stays. `kind`: None: with memory, where there is some. `delete_others`: the parent's other forks. `key`: the
        idempotency key: what was done with it is not done again, and what was begun goes on with the moments it kept."""
        once = key and f"promote/{hashlib.sha256(key.encode()).hexdigest()}"
        fingerprint = hashlib.sha256(json.dumps([fork, into, kind, delete_others]).encode()).hexdigest()
        if once:
            async with self._events.change() as ledger:
                done_before = await made_before(ledger.transaction, project_id, once, fingerprint)
            if done_before:
                return await self._sandboxes.get(project_id, done_before)
        winner = await self._sandboxes.get(project_id, fork)
        parent = await self._sandboxes.get(project_id, into)
        _check(winner, parent)
        called = winner.name or winner.id
        moment = await self._forks.keep(
            winner, kind, once and f"{once}/moment", f"for its promotion into {parent.name or parent.id}", fingerprint
        )
        memory = moment.kind is SnapshotKind.FULL
        if memory and parent.spec.limits.memory < winner.spec.limits.memory:
            await self._give_up(moment.project_id, moment.sandbox_id, moment.id)
            raise Conflict(
                f"{called} has {format_size(winner.spec.limits.memory)} of memory, more than the parent may have",
                hint="give the parent as much (sandkeep update), or promote the disk alone: --kind disk",
            )
        before = f"before {called} was promoted"
        await self._snapshots.keep_before(parent, memory, before, Cause.PROMOTE, once and f"{once}/before", fingerprint)
        adopted = await self._snapshots.create(
            project_id,
            parent.id,
            kind=moment.kind,
            reason=f"promoted from {called}",
            cause=Cause.PROMOTE,
            key=once and f"{once}/adopted",
            of=moment,
            asked=fingerprint,
        )
        ran = await self._ran(project_id, parent.id, once and f"{once}/ran", fingerprint)
        done = await self._snapshots.rollback(project_id, parent.id, adopted.id, kind=None, keep_before=False)
        if ran and done.status.phase is Phase.PAUSED:
            done = await self._sandboxes.resume(project_id, parent.id)
        elif ran:
            done = await self._sandboxes.start(project_id, parent.id)
        async with self._events.change() as ledger:
            told = EventKind.SANDBOX_PROMOTED, project_id, parent.id, f"from {called}"
            await ledger.tell(*told, fork=winner.id, snapshot=adopted.id)
            if once:
                await self._note(ledger, project_id, once, fingerprint, parent.id)
        await self._give_up(moment.project_id, moment.sandbox_id, moment.id)
        if delete_others:
            await self._delete_others(parent, winner)
        return done

    async def _ran(self, project_id: str, parent_id: str, key: str | None, fingerprint: str) -> bool:
        """Whether the parent ran when it was first to go on from there: what interrupted that may have ended its machine."""
        parent = await self._sandboxes.get(project_id, parent_id)
        runs = parent.status.phase is Phase.RUNNING
        if key is None:
            return runs
        async with self._events.change() as ledger:
            if runs:
                await self._note(ledger, project_id, key, fingerprint, parent_id)
            return await made_before(ledger.transaction, project_id, key, fingerprint) is not None

    async def _note(self, ledger: Ledger, project_id: str, key: str, fingerprint: str, parent_id: str) -> None:
        """Once."""
        if not await made_before(ledger.transaction, project_id, key, fingerprint):
            now = self._clock.now()
            await idempotency_store.add(ledger.transaction, project_id, key, fingerprint, parent_id, now)

    async def _give_up(self, project_id: str, sandbox_id: str, snapshot_id: str) -> None:
        """What was kept of the fork for the way is not needed any more."""
        with suppress(SandkeepError):
            await self._snapshots.delete(project_id, sandbox_id, snapshot_id)

    async def _delete_others(self, parent: Sandbox, winner: Sandbox) -> None:
        async with self._events.change() as ledger:
            ours = {one.id for one in await snapshot_store.of(ledger.transaction, parent.id)}
        for one in await self._sandboxes.everywhere():
            if one.project_id == parent.project_id and one.origin in ours and one.id not in (parent.id, winner.id):
                with suppress(SandkeepError):
                    reason = f"another fork was promoted: {winner.name or winner.id}"
                    await self._sandboxes.delete(one.project_id, one.id, reason=reason)


def _check(winner: Sandbox, parent: Sandbox) -> None:
    if winner.id == parent.id:
        raise InvalidArgument("a sandbox cannot be promoted into itself", field="into")
    if winner.spec.runtime is not parent.spec.runtime:
        raise Conflict(f"it runs on {winner.spec.runtime}, and the parent on {parent.spec.runtime}")
    if parent.spec.persistence is Persistence.EPHEMERAL:
        raise Unsupported("the parent is ephemeral: its machine would end, and with it the sandbox", field="into")
