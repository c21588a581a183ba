"""Files of a sandbox: streamed both ways in bounded memory, single ones and whole trees."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from sandkeep.sdk import errors
from sandkeep.sdk._async.frames import AsyncFrames
from sandkeep.sdk._async.transport import AsyncTransport, lost
from sandkeep.sdk.concurrency import async_chunks, async_iterate, async_run
from sandkeep.sdk.pack import pack
from sandkeep.sdk.requests import given
from sandkeep.sdk.results import FileEvent, FileInfo, TreeResult, file_info

Content = bytes | bytearray | str | IO[bytes] | Iterable[bytes] | AsyncIterable[bytes]
Progress = Callable[[int], None]
_SILENCE = 120.0
_OCTETS = {"Content-Type": "application/octet-stream"}


class AsyncFiles:
    """`sandbox.files`. Paths are absolute, or relative to the home of the user; what is made belongs to `user`
    (default: the template's). Every call wakes a paused or stopped sandbox.

    Raises NotFound, InvalidArgument, and NoCapacity when the disk is full.
    """

    def __init__(self, transport: AsyncTransport, sandbox_id: str) -> None:
        self._transport = transport
        self._home = f"/v1/sandboxes/{sandbox_id}"

    async def write(self, path: str, content: Content, *, user: str | None = None) -> None:
        """Make or replace a file from bytes, text (UTF-8), an open file or an iterable of bytes. Makes its folders."""
        body: Any
        if isinstance(content, str):
            body = content.encode()
        elif isinstance(content, bytes | bytearray):
            body = bytes(content)
        else:
            body = async_chunks(content)
        query = given(path=path, username=user)
        # An upload of bytes can be repeated: it replaces the file as a whole.
        again = isinstance(body, bytes)
        await self._transport.open(
            "POST", f"{self._home}/files", query=query, content=body, headers=_OCTETS, again=again, stream=False
        )

    async def read(self, path: str, *, user: str | None = None) -> bytes:
        """A whole file, in memory."""
        query = given(path=path, username=user)
        response = await self._transport.open("GET", f"{self._home}/files", query=query, again=True, stream=False)
        return response.content

    async def read_text(self, path: str, *, encoding: str = "utf-8", user: str | None = None) -> str:
        return (await self.read(path, user=user)).decode(encoding)

    async def read_stream(self, path: str, *, user: str | None = None) -> AsyncIterator[bytes]:
        """A file of any size, in chunks as they come (about 64 KiB)."""
        query = given(path=path, username=user)
        async for chunk in self._stream(f"{self._home}/files", query):
            yield chunk

    async def _stream(self, path: str, query: dict[str, Any]) -> AsyncIterator[bytes]:
        broken: type[Exception] = import_module("httpx2").TransportError
        response = await self._transport.open("GET", path, query=query, again=True, timeout=_SILENCE)
        try:
            async for chunk in response.aiter_raw():
                yield chunk
        except broken as failure:
            raise lost(self._transport.address.url, failure) from failure
        finally:
            await response.aclose()

    async def write_tree(
        self,
        local: str | Path,
        path: str,
        *,
        name: str | None = None,
        exclude: Sequence[str] = (),
        user: str | None = None,
        progress: Progress | None = None,
    ) -> TreeResult:
        """Copy what is in the local folder to the folder `path`, which is made if missing and keeps what else it has.

        A local file is copied into that folder as `name`, with its mode and time. `exclude`: shell patterns on relative
        or base names. `progress` is called with the size of each chunk sent.
        """
        skipped: list[str] = []

        async def content() -> AsyncIterator[bytes]:
            async for chunk in async_iterate(pack(Path(local), name=name, exclude=exclude, skipped=skipped.append)):
                yield chunk
                if progress is not None:
                    progress(len(chunk))

        answer = await self._transport.call_with(
            "PUT", f"{self._home}/tree", query=given(path=path, username=user), content=content()
        )
        told = answer if isinstance(answer, dict) else {}
        left_out = [f"{name} cannot be read, or is a device, a FIFO or a socket" for name in skipped]
        return TreeResult(
            files=int(told.get("files", 0)),
            folders=int(told.get("dirs", 0)),
            symlinks=int(told.get("symlinks", 0)),
            bytes=int(told.get("bytes", 0)),
            skipped=tuple(left_out[:100]),
            skipped_count=len(left_out) + int(told.get("skipped", 0)),
        )

    async def read_tree(
        self,
        path: str,
        local: str | Path,
        *,
        exclude: Sequence[str] = (),
        user: str | None = None,
        progress: Progress | None = None,
    ) -> TreeResult:
        """Copy what is in the folder `path` to the local folder, which is made if missing and keeps what else it has.

        Nothing outside of `local` is ever written, whatever the sandbox sends; see sdk/unpack. Raises UnsafeArchive.
        """
        from sandkeep.sdk.unpack import TreeWriter

        query = given(path=path, username=user, exclude=list(exclude) or None)
        writer: TreeWriter | None = None
        try:
            async for chunk in self._stream(f"{self._home}/tree", query):
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
            raise errors.UnsafeArchive("the sandbox sent nothing")
        return await async_run(writer.finish)

    async def list(self, path: str, *, depth: int = 1, user: str | None = None) -> Sequence[FileInfo]:
        """What is in a folder, `depth` levels deep, sorted by path."""
        answer = await self._rpc("ListDir", {"path": path, "depth": depth}, user)
        return [file_info(entry) for entry in answer.get("entries", [])]

    async def stat(self, path: str, *, user: str | None = None) -> FileInfo:
        return file_info((await self._rpc("Stat", {"path": path}, user))["entry"])

    async def exists(self, path: str, *, user: str | None = None) -> bool:
        try:
            await self._rpc("Stat", {"path": path}, user)
        except errors.NotFound as error:
            if error.details.get("agent_code"):
                return False
            raise  # the sandbox itself is not there
        return True

    async def make_dir(self, path: str, *, exist_ok: bool = True, user: str | None = None) -> None:
        """A folder and those above it. Raises AlreadyExists unless `exist_ok`."""
        try:
            await self._rpc("MakeDir", {"path": path}, user, again=exist_ok)
        except errors.AlreadyExists:
            if not exist_ok:
                raise

    async def move(self, source: str, destination: str, *, user: str | None = None) -> FileInfo:
        answer = await self._rpc("Move", {"source": source, "destination": destination}, user, again=False)
        return file_info(answer["entry"])

    async def remove(self, path: str, *, user: str | None = None) -> None:
        """A file, or a folder with all that is in it. No error when it is not there."""
        await self._rpc("Remove", {"path": path}, user)

    async def watch(self, path: str, *, recursive: bool = False, user: str | None = None) -> AsyncIterator[FileEvent]:
        """Changes below a folder, as they happen, until the iterator is closed. Raises ConnectionLost when the
        connection breaks: what changed meanwhile is not known then."""
        frames = await AsyncFrames.open(
            self._transport,
            f"{self._home}/agent/filesystem.Filesystem/WatchDir",
            {"path": path, "recursive": recursive},
            given(username=user),
        )
        try:
            while (message := await frames.receive()) is not None:
                event = message.get("filesystem")
                if isinstance(event, dict):
                    kind = str(event.get("type", "")).removeprefix("EVENT_TYPE_").lower()
                    yield FileEvent(str(event.get("name", "")), kind)
        finally:
            await frames.aclose()

    async def _rpc(self, method: str, message: dict[str, Any], user: str | None, *, again: bool = True) -> Any:
        path = f"{self._home}/agent/filesystem.Filesystem/{method}"
        return await self._transport.call("POST", path, body=message, query=given(username=user), again=again)
