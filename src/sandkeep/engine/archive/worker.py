"""Runs the confined program and carries pieces between it and the store. Used by the vault.

The program sees the folders that it is given and these two pipes; the store, its password and its network stay here.
"""

import asyncio
import fcntl
import json
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync

from sandkeep.domain.errors import Internal, NoCapacity
from sandkeep.engine.archive import carry, frames
from sandkeep.engine.archive.format import PIECE, SEALED, Body, body_from_json
from sandkeep.engine.archive.keys import NAME, DamagedError
from sandkeep.lib import process

_AT_ONCE = 16
"""Pieces under way to or from the store."""
_PATIENCE = 8.0
_BEAT = 10.0
_PROGRAMS = 4
"""So many of them run; others wait, since each computes."""
_FULL = frozenset({28, 122})  # ENOSPC, EDQUOT

Get = Callable[[str], Awaitable[bytes]]
Put = Callable[[str, bytes], Awaitable[None]]


@dataclass(frozen=True)
class Folders:
    disk: Path
    memory: Path | None = None

    def given(self) -> dict[str, str]:
        found = {"disk": str(self.disk)}
        return found | ({"memory": str(self.memory)} if self.memory else {})


@dataclass(frozen=True)
class Formerly:
    """The archive that the disk was unpacked from: its manifest, the inode of its first name, and those touched since."""

    manifest: bytes
    first: int
    touched: frozenset[int]
    get: Get

    def given(self) -> dict[str, Any]:
        return {"former": {"first": self.first, "touched": sorted(self.touched)}}


@dataclass(frozen=True)
class Proof:
    """What is to be read back: a manifest as the store gives it, and all its pieces but those that are sure."""

    manifest: bytes
    sure: set[str]
    get: Get


class Worker:
    """user: user and group that the program becomes; None: it stays what it is, and sees all (tests of logic)."""

    def __init__(self, user: tuple[int, int] | None) -> None:
        self._user = user
        self._turns = asyncio.Semaphore(_PROGRAMS)

    async def pack(
        self,
        folders: Folders,
        key: bytes,
        signing: bytes,
        known: set[str],
        put: Put,
        prove: Callable[[Body], Awaitable[Proof]],
        former: Formerly | None = None,
    ) -> None:
        """Every piece that is not known is put; the body names all. Then what `prove` says is read back, by a program that sees
        no folder, and starts meanwhile. Raises DamagedError, Internal, NoCapacity, and what `put`, `prove` and `get` raise."""
        async with self._started("verify", {}, key, signing=signing.hex()) as back:
            proof = await prove(await self._packed(folders, key, signing, known, put, former))
            await back.send(frames.MANIFEST, proof.manifest)
            await back.send(frames.SURE, bytes.fromhex("".join(proof.sure)))
            await _served(back, proof.get)

    async def _packed(
        self, folders: Folders, key: bytes, signing: bytes, known: set[str], put: Put, former: Formerly | None
    ) -> Body:
        names = "".join(sorted(known))
        more = former.given() if former else {}
        async with self._running("pack", folders.given(), key, signing=signing.hex(), known=names, **more) as pipes:
            if former:
                await pipes.send(frames.MANIFEST, former.manifest)
            crew = _Crew()
            try:
                while True:
                    kind, data = await pipes.receive(SEALED + NAME)
                    if former and kind == frames.WANT:  # of the former index: a few
                        await pipes.send(frames.PIECE, data, await former.get(data.hex()))
                        continue
                    if kind != frames.PIECE:
                        break
                    await crew.begin(put(data[:NAME].hex(), data[NAME:]))
                await crew.finish()
            finally:
                await crew.give_up()
        return body_from_json(_answer(kind, data))

    def another(self) -> "Worker":
        """With turns of its own: what waits for a person's connection must not hold up the others."""
        return Worker(self._user)

    async def pour(self, folders: Folders, key: bytes) -> AsyncGenerator[tuple[bytes, bytes], None]:
        """Kind and content as the program sends them: pieces of the index, the body (carry.BODY), pieces of content; an empty
        kind when there was nothing for a while. To be closed. Raises Internal."""
        async with self._started("pour", folders.given(), key) as pipes:
            while True:
                receiving = asyncio.create_task(pipes.receive(frames.MOST))
                try:
                    while not (await asyncio.wait({receiving}, timeout=_BEAT))[0]:
                        yield b"", b""
                    kind, data = receiving.result()
                finally:
                    receiving.cancel()
                if kind not in (frames.PIECE, carry.BODY):
                    break
                yield kind, data
        _answer(kind, data)

    async def look(self, manifest: bytes, key: bytes, signing: bytes) -> dict[str, Any]:
        """What a stranger's manifest says (carry.look). Raises DamagedError, Internal."""
        async with self._started("look", {}, key, signing=signing.hex(), room=str(carry.ROOM)) as pipes:
            await pipes.send(frames.MANIFEST, manifest)
            kind, data = await pipes.receive(1 << 20)
        return _answer(kind, data)

    async def unpack(
        self, folders: Folders, manifest: bytes, key: bytes, signing: bytes, get: Get, *, strange: bool = False
    ) -> tuple[int, int | None]:
        """Devices that were left out, and the inode of the first name (Unpacker.unpack). `strange`: nobody here made it, so it
        may take so much memory and no more. Raises DamagedError, Internal, NoCapacity, and what `get` raises."""
        bounds = {"room": str(carry.ROOM)} if strange else {}
        found = await self._read("unpack", folders.given(), manifest, key, signing, get, **bounds)
        return int(found["left_out"]), found["first"] and int(found["first"])

    async def rehearse(self, folders: Folders, manifest: bytes, key: bytes, signing: bytes, get: Get) -> None:
        """As `unpack`, and what was made is compared with the manifest. Raises the same."""
        await self._read("rehearse", folders.given(), manifest, key, signing, get)

    async def _read(
        self, do: str, folders: dict[str, str], manifest: bytes, key: bytes, signing: bytes, get: Get, **more: Any
    ) -> dict[str, Any]:
        async with self._started(do, folders, key, signing=signing.hex(), **more) as pipes:
            await pipes.send(frames.MANIFEST, manifest)
            return await _served(pipes, get)

    @asynccontextmanager
    async def _started(self, do: str, folders: dict[str, str], key: bytes, **more: Any) -> AsyncIterator["_Pipes"]:
        async with self._turns:
            async with self._running(do, folders, key, **more) as pipes:
                yield pipes

    @asynccontextmanager
    async def _running(self, do: str, folders: dict[str, str], key: bytes, **more: Any) -> AsyncIterator["_Pipes"]:
        to, out = _pipe(), _pipe()
        said = os.memfd_create("stderr")
        try:
            child = process.spawn(
                [sys.executable, "-I", "-m", "sandkeep.engine.archive"],
                stdin=to[0],
                stdout=out[1],
                stderr=said,
                cwd="/",
                new_session=True,
            )
        except BaseException:
            for fd in (*to, *out, said):
                os.close(fd)
            raise
        os.close(to[0])
        os.close(out[1])
        pipes = _Pipes(out[0], to[1])
        try:
            task = {"do": do, "folders": folders, "key": key.hex(), "user": self._user, **more}
            try:
                await pipes.send(frames.TASK, json.dumps(task).encode())
                yield pipes
            except (EOFError, ConnectionError, ValueError) as error:
                await process.kill([child.pid])
                words = os.pread(said, 4096, 0).decode(errors="replace").strip().splitlines()
                raise Internal(
                    f"the archive's program ended ({await child.wait()}): {words[-1] if words else error!r}"
                ) from error
        finally:
            os.close(said)
            with anyio.move_on_after(_PATIENCE, shield=True):
                if child.code is None:
                    await process.kill([child.pid])
                await pipes.close()


async def _served(pipes: "_Pipes", get: Get) -> dict[str, Any]:
    """What the program answers, when it has got each piece that it wants. Raises what `get` raises."""
    wanted: asyncio.Queue[tuple[bytes, asyncio.Task[bytes]]] = asyncio.Queue()
    room = asyncio.Semaphore(_AT_ONCE)

    async def fetched(name: str) -> bytes:
        async with room:
            return await get(name)

    async def deliver() -> None:
        while True:
            name, task = await wanted.get()
            piece = await task
            with suppress(ConnectionError):  # it has ended: what it said last is still to be read
                await pipes.send(frames.PIECE, name, piece)

    delivering = asyncio.create_task(deliver())
    tasks: set[asyncio.Task[Any]] = {delivering}
    try:
        while True:
            receiving = asyncio.create_task(pipes.receive(1 << 20))
            tasks.add(receiving)
            await asyncio.wait({receiving, delivering}, return_when=asyncio.FIRST_COMPLETED)
            if delivering.done():
                delivering.result()  # it ends only when a piece cannot be had
            kind, data = await receiving
            if kind != frames.WANT:
                return _answer(kind, data)
            task = asyncio.create_task(fetched(data.hex()))
            task.add_done_callback(_seen)
            tasks = {one for one in tasks if not one.done()} | {task, delivering}
            wanted.put_nowait((data, task))
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _answer(kind: bytes, data: bytes) -> dict[str, Any]:
    try:
        found = dict(json.loads(data))
    except (ValueError, TypeError) as error:
        raise Internal("the archive's program answered nonsense") from error
    message = str(found.get("message", ""))[:500]
    if kind == frames.DAMAGED:
        raise DamagedError(message, tuple(str(name) for name in found.get("pieces", ())))
    if kind == frames.FAILED:
        if found.get("errno") in _FULL:
            raise NoCapacity(f"the disk is full: {message}", hint="free some room in the pool, or raise the limit")
        raise Internal(f"the archive's program failed: {message}")
    if kind != frames.DONE:
        raise Internal("the archive's program answered nonsense")
    return found


def _seen(task: "asyncio.Future[Any]") -> None:
    """Of several that fail at once the first is told; the others are no news."""
    if not task.cancelled():
        task.exception()


def _pipe() -> tuple[int, int]:
    """One that holds a piece: through the usual 64 KiB each would take a dozen turns of both sides."""
    reader, writer = os.pipe()
    with suppress(OSError):  # a host that grants no more
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIECE)
    return reader, writer


class _Crew:
    """Uploads, some at once; the first failure ends it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(_seen)
        self._tasks.add(task)
        while len(self._tasks) >= _AT_ONCE:
            await self._some(asyncio.FIRST_COMPLETED)

    async def finish(self) -> None:
        while self._tasks:
            await self._some(asyncio.FIRST_EXCEPTION)

    async def _some(self, when: str) -> None:
        done, self._tasks = await asyncio.wait(self._tasks, return_when=when)
        for task in done:
            task.result()

    async def give_up(self) -> None:
        """What is under way ends first, so that nothing is put any more when somebody erases the archive after this."""
        if not self._tasks:
            return
        with anyio.CancelScope(shield=True):
            _, late = await asyncio.wait(self._tasks, timeout=_PATIENCE)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


class _Pipes:
    """The program's output and input, by threads: through asyncio's own pipes a piece costs ten times as much."""

    def __init__(self, out: int, to: int) -> None:
        self._out = os.fdopen(out, "rb", buffering=1 << 16)
        self._to = os.fdopen(to, "wb", buffering=1 << 16)
        self._threads = anyio.CapacityLimiter(2)
        """One for each direction, and none of those that others wait for: a program may be silent for long."""

    async def send(self, kind: bytes, *data: bytes) -> None:
        """Raises ConnectionError."""
        await run_sync(self._send, kind, *data, abandon_on_cancel=True, limiter=self._threads)

    async def receive(self, limit: int) -> tuple[bytes, bytes]:
        """limit: of all but the last frame. Raises EOFError, ValueError."""
        return await run_sync(frames.receive, self._out, limit, abandon_on_cancel=True, limiter=self._threads)

    def _send(self, kind: bytes, *data: bytes) -> None:
        frames.send(self._to, kind, *data)
        self._to.flush()

    async def close(self) -> None:
        """When the program has ended: no thread waits for it any more."""
        await run_sync(self._close, abandon_on_cancel=True, limiter=self._threads)

    def _close(self) -> None:
        for pipe in (self._out, self._to):
            with suppress(OSError):  # what was not sent goes nowhere
                pipe.close()
