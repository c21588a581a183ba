"""A sandbox as one file: out of one server, into another. Part of AsyncSandbox."""

from collections.abc import AsyncIterator, Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from sandkeep.sdk._async.transport import NO_LIMIT, AsyncTransport, lost
from sandkeep.sdk.concurrency import async_chunks, async_run
from sandkeep.sdk.portable import FILE_KEY, PartFile, Tail, fresh_file_key
from sandkeep.sdk.requests import fresh_key, given

Progress = Callable[[int], None]
_SILENCE = 300.0
_OCTETS = {"Content-Type": "application/octet-stream"}


async def export_sandbox(
    transport: AsyncTransport, home: str, target: str | Path | IO[bytes], key: str | None, progress: Progress | None
) -> str:
    """The key. home: path of the sandbox at the server."""
    key = key or fresh_file_key()
    if not isinstance(target, str | Path):
        await _download(transport, home, key, target, progress)
        return key
    part: PartFile | None = None
    try:
        async for chunk in _chunks(transport, home, key, progress):
            if part is None:  # only now is there anything to write
                part = await async_run(PartFile, Path(target))
            await async_run(part.write, chunk)
        if part is not None:
            await async_run(part.finish)
            part = None
    finally:
        if part is not None:
            part.abort()
    return key


async def _download(
    transport: AsyncTransport, home: str, key: str, target: IO[bytes], progress: Progress | None
) -> None:
    async for chunk in _chunks(transport, home, key, progress):
        await async_run(target.write, chunk)
    await async_run(target.flush)


async def _chunks(transport: AsyncTransport, home: str, key: str, progress: Progress | None) -> AsyncIterator[bytes]:
    """All of the file, or an error after as much as came."""
    broken: type[Exception] = import_module("httpx2").TransportError
    tail = Tail()
    response = await transport.open("POST", f"{home}/export", headers={FILE_KEY: key}, again=True, timeout=_SILENCE)
    try:
        async for chunk in response.aiter_raw():
            tail.seen(chunk)
            yield chunk
            if progress is not None:
                progress(len(chunk))
    except broken as failure:
        # A stream can only break off. When the sandbox is gone, this says so.
        await transport.call("GET", home, again=True)
        raise lost(transport.address.url, failure) from failure
    finally:
        await response.aclose()
    tail.check()


async def import_sandbox(
    transport: AsyncTransport,
    source: str | Path | IO[bytes],
    key: str,
    *,
    name: str | None,
    disk_only: bool,
    idempotency_key: str | None,
    progress: Progress | None,
) -> Mapping[str, Any]:
    """The SandboxView as it came."""
    if isinstance(source, str | Path):
        file = await async_run(open, source, "rb")
        try:
            return await _upload(transport, file, key, name, disk_only, idempotency_key, progress)
        finally:
            await async_run(file.close)
    return await _upload(transport, source, key, name, disk_only, idempotency_key, progress)


async def _upload(
    transport: AsyncTransport,
    file: IO[bytes],
    key: str,
    name: str | None,
    disk_only: bool,
    idempotency_key: str | None,
    progress: Progress | None,
) -> Mapping[str, Any]:
    async def content() -> AsyncIterator[bytes]:
        async for chunk in async_chunks(file):
            yield chunk
            if progress is not None:
                progress(len(chunk))

    headers = {**_OCTETS, FILE_KEY: key, "Idempotency-Key": idempotency_key or fresh_key()}
    query = given(name=name, disk_only="true" if disk_only else None)
    response = await transport.open(
        "POST", "/v1/import", query=query, content=content(), headers=headers, timeout=NO_LIMIT, stream=False
    )
    answer: Mapping[str, Any] = response.json()
    return answer
