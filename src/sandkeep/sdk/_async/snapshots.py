"""Snapshots of a sandbox: points in time that it owns. Going back and forking are calls of the sandbox itself."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sandkeep.sdk._async.browse import AsyncBrowse
from sandkeep.sdk._async.lists import pages
from sandkeep.sdk._async.transport import NO_LIMIT, AsyncTransport
from sandkeep.sdk.requests import fresh_key, given, quoted, shaped, snapshot_ref

if TYPE_CHECKING:
    from typing import Literal

    from sandkeep.wire.snapshots import SnapshotKind, SnapshotView


class AsyncSnapshots(AsyncBrowse):
    """`sandbox.snapshots`. A snapshot is given by its name, its id or its view. What is in one: see AsyncBrowse."""

    def __init__(self, transport: AsyncTransport, sandbox_id: str) -> None:
        super().__init__(transport, sandbox_id)
        self._sandbox = f"/v1/sandboxes/{sandbox_id}"
        self._path = self._sandbox + "/snapshots"

    async def create(
        self,
        name: str | None = None,
        *,
        kind: "SnapshotKind | None" = None,
        tags: Sequence[str] | None = None,
        cause: 'Literal["asked", "exec"] | None' = None,
        idempotency_key: str | None = None,
    ) -> "SnapshotView":
        """Keep the sandbox as it is now; a running one goes on. `kind="full"`: with memory and processes, which resets its
        outside connections. Without a `name` it goes by its id. `cause`: exec for one before a command, which the rules of its
        timeline concern. Safe to repeat: each call carries an idempotency key (`idempotency_key` to choose it).

        Raises AlreadyExists (a snapshot of this name), QuotaExceeded, NoCapacity, InvalidArgument; of a full one PauseFailed
        (nothing was changed), Unsupported, Conflict (there is no memory).
        """
        body = given(name=name, kind=kind, tags=list(tags) if tags is not None else None, cause=cause)
        headers = {"Idempotency-Key": idempotency_key or fresh_key()}
        answer = await self._transport.call("POST", self._path, body=body, headers=headers, again=True)
        view: SnapshotView = shaped("snapshots.SnapshotView", answer)
        return view

    async def commit(self, name: str | None = None, *, idempotency_key: str | None = None) -> "SnapshotView":
        """Let the next sessions (`persistence="snapshot"`) start from the disk as it is now."""
        headers = {"Idempotency-Key": idempotency_key or fresh_key()}
        answer = await self._transport.call(
            "POST", self._sandbox + "/commit", body=given(name=name), headers=headers, again=True
        )
        view: SnapshotView = shaped("snapshots.SnapshotView", answer)
        return view

    async def list(self) -> "Sequence[SnapshotView]":
        """All of them, the oldest first; `parent` of each says how they make a tree."""
        return [shaped("snapshots.SnapshotView", item) async for item in pages(self._transport, self._path)]

    async def get(self, snapshot: "str | SnapshotView") -> "SnapshotView":
        """Raises NotFound."""
        answer = await self._transport.call("GET", self._of(snapshot), again=True)
        view: SnapshotView = shaped("snapshots.SnapshotView", answer)
        return view

    async def delete(self, snapshot: "str | SnapshotView") -> None:
        """For good. Those made after it, and forks of it, stay as they are."""
        await self._transport.call("DELETE", self._of(snapshot), again=True)

    async def archive(self, snapshot: "str | SnapshotView") -> "SnapshotView":
        """To the object store; the local copy goes when all of it was read back from there. `archived` of the view says how many
        bytes of the store it is. Raises Conflict (it did not come back as it was: nothing was changed), Unavailable."""
        return await self._moved(snapshot, "archive")

    async def wake(self, snapshot: "str | SnapshotView") -> "SnapshotView":
        """Back from the object store. Raises Conflict for what is not as it was put there, NoCapacity."""
        return await self._moved(snapshot, "wake")

    async def _moved(self, snapshot: "str | SnapshotView", verb: str) -> "SnapshotView":
        answer = await self._transport.call("POST", f"{self._of(snapshot)}/{verb}", again=True, timeout=NO_LIMIT)
        view: SnapshotView = shaped("snapshots.SnapshotView", answer)
        return view

    def _of(self, snapshot: "str | SnapshotView") -> str:
        return f"{self._path}/{quoted(snapshot_ref(snapshot))}"
