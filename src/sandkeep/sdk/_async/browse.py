"""Files of a sandbox's disk at a snapshot, or as it is now: looked at and copied out without starting anything."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandkeep.sdk import errors
from sandkeep.sdk._async.transport import AsyncTransport, lost
from sandkeep.sdk.concurrency import async_run
from sandkeep.sdk.requests import given, query_of, snapshot_ref
from sandkeep.sdk.results import FileInfo, TreeResult, disk_file

if TYPE_CHECKING:
    from sandkeep.wire.snapshots import SnapshotView

_PAGE = 1000
_SILENCE = 120.0


class AsyncBrowse:
    """Part of `sandbox.snapshots`. Paths begin with a slash; of a name that is not UTF-8 the other bytes are as in
    os.fsdecode. `snapshot`: its name, its id, its view, or None for the disk as it is now (of what runs: what was written
    down). No link in a disk leads out of it.

    Raises NotFound (the snapshot, or the path), InvalidArgument.
    """

    def __init__(self, transport: AsyncTransport, sandbox_id: str) -> None:
        self._transport = transport
        self._disk = f"/v1/sandboxes/{sandbox_id}/browse"

    async def ls(self, snapshot: "str | SnapshotView | None", path: str = "/") -> Sequence[FileInfo]:
        """What is in a folder, by name; of a link the link itself."""
        return [found async for found in self.iter_ls(snapshot, path)]

    async def iter_ls(self, snapshot: "str | SnapshotView | None", path: str = "/") -> AsyncIterator[FileInfo]:
        """As `ls`, fetched as they are asked for: for folders of any size."""
        cursor: str | None = None
        while True:
            asked = self._asked("list", snapshot, path, limit=_PAGE, cursor=cursor)
            page = await self._transport.call("GET", asked, again=True)
            for item in page["items"]:
                yield disk_file(path, item)
            cursor = page.get("next_cursor")
            if not cursor:
                return

    async def stat(self, snapshot: "str | SnapshotView | None", path: str, *, follow: bool = False) -> FileInfo:
        """`follow`: of what a link leads to."""
        asked = self._asked("stat", snapshot, path, follow="true" if follow else None)
        found: Mapping[str, Any] = await self._transport.call("GET", asked, again=True)
        return disk_file(path.rstrip("/").rpartition("/")[0] or "/", found)

    async def read(self, snapshot: "str | SnapshotView | None", path: str) -> bytes:
        """A whole file, in memory."""
        return b"".join([chunk async for chunk in self.read_stream(snapshot, path)])

    async def read_text(self, snapshot: "str | SnapshotView | None", path: str, *, encoding: str = "utf-8") -> str:
        return (await self.read(snapshot, path)).decode(encoding)

    async def read_stream(self, snapshot: "str | SnapshotView | None", path: str) -> AsyncIterator[bytes]:
        """A file of any size, in chunks as they come."""
        async for chunk in self._bytes("files", snapshot, path):
            yield chunk

    async def read_tree(
        self,
        snapshot: "str | SnapshotView | None",
        path: str,
        local: str | Path,
        *,
        exclude: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
    ) -> TreeResult:
        """Copy what is in the folder `path` to the local folder, as `files.read_tree` does: nothing outside of `local` is ever
        written. Raises UnsafeArchive."""
        from sandkeep.sdk.unpack import TreeWriter

        writer: TreeWriter | None = None
        try:
            async for chunk in self._bytes("tree", snapshot, path, exclude=list(exclude)):
                if writer is None:
                    writer = await async_run(TreeWriter, Path(local))
                await async_run(writer.feed, chunk)
                if progress is not None:
                    progress(len(chunk))
        except BaseException:
            if writer is not None:
                writer.abort()
            raise
        if writer is None:
            raise errors.UnsafeArchive("the server sent nothing")
        return await async_run(writer.finish)

    async def _bytes(
        self, what: str, snapshot: "str | SnapshotView | None", path: str, **more: Any
    ) -> AsyncIterator[bytes]:
        broken: type[Exception] = import_module("httpx2").TransportError
        asked = self._asked(what, snapshot, path, **more)
        response = await self._transport.open("GET", asked, again=True, timeout=_SILENCE)
        try:
            async for chunk in response.aiter_raw():
                yield chunk
        except broken as failure:
            # A stream can only break off. When the snapshot is gone, this says so.
            await self._transport.call("GET", self._asked("stat", snapshot, "/"), again=True)
            raise lost(self._transport.address.url, failure) from failure
        finally:
            await response.aclose()

    def _asked(self, what: str, snapshot: "str | SnapshotView | None", path: str, **more: Any) -> str:
        point = None if snapshot is None else snapshot_ref(snapshot)
        return f"{self._disk}/{what}?{query_of(given(snapshot=point, path=path, **more))}"
