"""The few things that the async and the sync SDK do differently, in pairs. scripts/unasync.py swaps the names."""

import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import IO, Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")

CHUNK = 1 << 20
_END: Any = object()


async def async_run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """A blocking call (files on the local disk), off the event loop."""
    from functools import partial

    import anyio.to_thread

    return await anyio.to_thread.run_sync(partial(function, *args, **kwargs))


def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return function(*args, **kwargs)


async def async_sleep(seconds: float) -> None:
    import anyio

    await anyio.sleep(seconds)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


async def async_iterate(items: Iterator[T]) -> AsyncIterator[T]:
    """A blocking iterator, each step off the event loop."""
    while (item := await async_run(next, items, _END)) is not _END:
        yield cast(T, item)


def iterate(items: Iterator[T]) -> Iterator[T]:
    return items


class AsyncLock:
    """For tasks; made outside of an event loop too."""

    def __init__(self) -> None:
        import anyio

        self._lock = anyio.Lock()

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class Lock:
    """For threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class AsyncBackground:
    """Runs a function, which must not raise, beside the body of the block; the end of the block waits for it."""

    def __init__(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        import anyio

        self._function = function
        self._tasks = anyio.create_task_group()

    async def __aenter__(self) -> None:
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._function)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._tasks.cancel_scope.cancel()
        # The body's own error is raised by the block as it is, not in a group.
        await self._tasks.__aexit__(None, None, None)


class Background:
    """The same in a thread; after an error it is left to itself."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=function, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._thread.join()


def _blocks(source: IO[bytes] | Iterable[bytes]) -> Iterator[bytes]:
    reader = getattr(source, "read", None)
    if reader is None:
        yield from source
        return
    while block := reader(CHUNK):
        yield block.encode() if isinstance(block, str) else block


async def async_chunks(source: IO[bytes] | Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Bytes to upload, from an open file or an iterable of either kind."""
    if hasattr(source, "__aiter__"):
        async for block in cast(AsyncIterable[bytes], source):
            yield block
    else:
        async for block in async_iterate(_blocks(source)):
            yield block


def chunks(source: IO[bytes] | Iterable[bytes]) -> Iterator[bytes]:
    return _blocks(source)


def async_scope() -> Any:
    """What a default client belongs to: the running event loop, since its connections do."""
    import asyncio

    return asyncio.get_running_loop()


class _Process:
    """The sync default client belongs to the process; a fork gets a new one."""


_process = _Process()


def scope() -> Any:
    return _process


def _after_fork() -> None:
    global _process
    _process = _Process()


def _register() -> None:
    import os

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


_register()
