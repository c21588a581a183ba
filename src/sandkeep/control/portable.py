"""Export and import: one file carries a sandbox from this installation to another. Here its head is looked at; what is in it
is the node's to open."""

import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace

from sandkeep.contracts.runner import Runner
from sandkeep.control.changes import refuse_deleted
from sandkeep.control.creation import Fork
from sandkeep.control.events import Events
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.control.templates import BUILD_LABEL
from sandkeep.domain.errors import Busy
from sandkeep.domain.event import EventKind
from sandkeep.domain.node import Observed, OperationRef, SandboxOnNode
from sandkeep.domain.portable import Frames, head, parse_key
from sandkeep.domain.sandbox import Sandbox

_AT_ONCE = 8
"""Files that come in: of each the head is held."""


class Portable:
    def __init__(self, events: Events, sandboxes: Sandboxes, runner: Runner) -> None:
        self._coming = 0
        self._events = events
        self._sandboxes = sandboxes
        self._runner = runner

    async def export(self, project_id: str, reference: str, key: str) -> AsyncGenerator[bytes, None]:
        """The file as it comes, to be closed; it opens with `key`, which is kept nowhere. Raises Conflict, Unsupported, NotFound,
        InvalidArgument before the first chunk."""
        sandbox = await self._sandboxes.get(project_id, reference)
        refuse_deleted(sandbox)
        parse_key(key)
        sent = 0
        async with aclosing(self._runner.export_sandbox(sandbox.id, key)) as chunks:
            async for chunk in chunks:
                sent += len(chunk)
                yield chunk
        async with self._events.change() as ledger:
            await ledger.tell(EventKind.SANDBOX_EXPORTED, project_id, sandbox.id, "into a file", bytes=sent)

    async def bring(
        self,
        project_id: str,
        name: str | None,
        file_key: str,
        content: AsyncIterator[bytes],
        *,
        disk_only: bool,
        key: str | None,
        caller: str,
    ) -> tuple[Sandbox, bool]:
        """A sandbox of its own from the file: stopped, or paused with its memory. `name`: instead of the one in the file; `key`:
        the idempotency key. Nothing is left of what does not come to its end. Raises InvalidArgument, Unsupported, AlreadyExists,
        QuotaExceeded, NoCapacity."""
        parse_key(file_key)
        with self._counted():
            frames = Frames(content)
            begin = head(*await frames.head())
            carried = await self._runner.look_portable(file_key, disk_only, _once(begin))
            labels = {name: value for name, value in carried.spec.labels.items() if name != BUILD_LABEL}
            spec = replace(carried.spec, labels=labels)
            asked = json.dumps([hashlib.sha256(begin).hexdigest(), name, disk_only])

            async def unpack(operation: OperationRef, on_node: SandboxOnNode) -> Observed:
                return await self._runner.import_sandbox(
                    operation, on_node, file_key, disk_only, _chained(begin, frames)
                )

            memory = carried.memory and not disk_only
            once = key and f"import/{hashlib.sha256(key.encode()).hexdigest()}"
            return await self._sandboxes.create(
                project_id, name or carried.name, spec, once, caller, fork=Fork(None, memory, asked), bring=unpack
            )

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._coming >= _AT_ONCE:
            raise Busy(f"{_AT_ONCE} files are being imported", hint="try again", retry_after=5)
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _chained(begin: bytes, frames: Frames) -> AsyncIterator[bytes]:
    yield begin
    async for chunk in frames.rest():
        yield chunk
