"""Export and import: a sandbox goes into one file, and comes out of one as another sandbox.

The file is a stream in the order in which it is unpacked, so that neither end holds it: not in memory, and not as a second copy.
What it holds is a stranger's, also when it opens with its key: whoever has a key can make a file. So only the confined program
opens what is sealed in it, and what that says is checked again here.
"""

import json
import secrets
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Container, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace

import anyio
from anyio.to_thread import run_sync

from sandkeep.domain.errors import (
    Busy,
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    NoCapacity,
    NotFound,
    SandkeepError,
    TooLarge,
    Unsupported,
)
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import Observed, OperationRef, SandboxOnNode
from sandkeep.domain.portable import (
    BEAT,
    KEY,
    KEY_BYTES,
    LAST,
    MAGIC,
    MANIFEST,
    MOST_MANIFEST,
    PIECE,
    Carried,
    Frames,
    frame,
    parse_key,
)
from sandkeep.domain.quantities import format_size
from sandkeep.domain.sandbox import Hold, Persistence, Phase, Spec
from sandkeep.engine import hibernation, lifecycle, passing
from sandkeep.engine.admission import admit_disk
from sandkeep.engine.archive import carry, keys
from sandkeep.engine.archive.format import SEALED, Head, body_from_json, write_manifest
from sandkeep.engine.archive.keys import NAME, DamagedError, DataKey
from sandkeep.engine.archive.worker import Folders
from sandkeep.engine.journal import Entry
from sandkeep.engine.lanes import Lanes
from sandkeep.engine.opened import CANNOT, Opened, believed, needs, said, signing
from sandkeep.engine.operations import Operations
from sandkeep.engine.parts import Parts
from sandkeep.engine.readings import identity
from sandkeep.engine.records import ANEW, Foreign, Record
from sandkeep.engine.saving import verify
from sandkeep.engine.undo import Undos

_AT_ONCE = 4
_LANE_DEADLINE = 300.0
_LONGEST = 6 * 3600.0
_LOOK_EVERY = 1.0
_SPOOLED = 4 << 20
_OWNER = "portable"
_COPY_AGAIN = "nothing was made; copy it again from where it was exported, and use the key that belongs to it"


class Porter:
    """Kept by the supervisor. gone: ids whose delete came before anything else."""

    def __init__(self, parts: Parts, lanes: Lanes, operations: Operations, gone: Container[str]) -> None:
        self._parts = parts
        self._lanes = lanes
        self._operations = operations
        self._gone = gone
        self._worker = parts.vault.worker()
        self._under_way = 0

    # -- export

    async def export(self, sandbox_id: str, key: str) -> AsyncGenerator[bytes, None]:
        """The file, as it comes. Its moment is kept meanwhile, so that the sandbox may do what it will."""
        under = parse_key(key)
        with self._counted():
            async with self._moment(sandbox_id) as (generation, record):
                root = self._parts.disks.generation_path(sandbox_id, generation)
                memory = None
                if record.generation:
                    memory = self._parts.disks.memory_folder(sandbox_id, generation)
                    await verify(memory, record.generation)
                began = looked = self._parts.clock.monotonic()
                async with aclosing(self._poured(record, Folders(root, memory), under)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                        now = self._parts.clock.monotonic()
                        if now - began > _LONGEST:
                            raise DeadlineExceeded(f"it took longer than {_LONGEST / 3600:g} hours")
                        if now - looked > _LOOK_EVERY:
                            looked = now
                            if await run_sync(identity, root) is None:
                                raise NotFound("it was deleted meanwhile")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._under_way >= _AT_ONCE:
            raise Busy(f"{_AT_ONCE} exports and imports are under way on this node", hint="try again", retry_after=5)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    @asynccontextmanager
    async def _moment(self, sandbox_id: str) -> AsyncIterator[tuple[str, Record]]:
        """A generation that lives as long as the block, and the record that it is of."""
        _check_exportable(self._operations.known(sandbox_id))

        async def take(generation: str) -> Record:
            record = self._operations.known(sandbox_id)
            _check_exportable(record)
            if record.generation:
                await self._parts.disks.copy_generation(sandbox_id, generation, sandbox_id, record.generation.id)
            else:
                await self._parts.disks.snapshot(sandbox_id, generation)
            return record

        async with passing.kept(self._parts, self._lanes, sandbox_id, passing.EXPORT, _LANE_DEADLINE, take) as kept:
            yield kept

    async def _poured(self, record: Record, folders: Folders, under: bytes) -> AsyncGenerator[bytes, None]:
        data_key = keys.new_key()
        begin = MAGIC + frame(KEY, bytes.fromhex(keys.wrap(data_key, under, _OWNER)))
        place = self._parts.settings.agent_folder.parent
        # The index is small beside the content; most of the time it does not even come to a disk.
        with tempfile.SpooledTemporaryFile(_SPOOLED, dir=str(place)) as index:
            async with aclosing(self._worker.pour(folders, data_key)) as sent:
                known = False
                async for kind, data in sent:
                    if not kind:
                        yield begin + frame(BEAT)
                        begin = b""
                    elif kind == carry.BODY:
                        known = True
                        yield begin + frame(MANIFEST, self._manifest(record, data, data_key))
                        index.seek(0)
                        while block := await run_sync(index.read, 1 << 20):
                            yield block
                    elif known:
                        yield frame(PIECE, data)
                    else:
                        await run_sync(index.write, frame(PIECE, data))
            yield LAST

    def _manifest(self, record: Record, data: bytes, data_key: bytes) -> bytes:
        kept = record.generation
        memory = needs(record, self._parts.records.token_in(kept.id) or record.token) if kept else {}
        body = replace(body_from_json(json.loads(data)), needs=memory, record=said(record))
        head = Head("", "", 0, "", self._parts.clock.now())
        manifest = write_manifest(head, body, DataKey(data_key), signing(data_key))
        if len(manifest) > MOST_MANIFEST:
            raise TooLarge(f"a disk of {format_size(body.size)} in so many pieces does not fit into one file")
        return manifest

    # -- import

    async def look(self, key: str, disk_only: bool, content: AsyncIterator[bytes]) -> Carried:
        """What is in the file whose head this is; raises what an import of it would raise at its beginning."""
        opened = await self._opened(Frames(content), key)
        await self._check(opened, opened.carried.spec, disk_only)
        return opened.carried

    async def bring(
        self, operation: OperationRef, sandbox: SandboxOnNode, key: str, disk_only: bool, content: AsyncIterator[bytes]
    ) -> Observed:
        """A new sandbox from the file: stopped, or paused with its memory."""

        @asynccontextmanager
        async def room() -> AsyncIterator[None]:
            with self._counted():
                yield

        async def work(entry: Entry, undos: Undos) -> Record:
            return await self._made(operation, sandbox, key, disk_only, Frames(content), entry, undos)

        return await self._operations.make(operation, sandbox, "import", _LONGEST, self._gone, room(), work)

    async def _made(
        self,
        operation: OperationRef,
        sandbox: SandboxOnNode,
        key: str,
        disk_only: bool,
        frames: Frames,
        entry: Entry,
        undos: Undos,
    ) -> Record:
        disks = self._parts.disks
        opened = await self._opened(frames, key)
        await self._check(opened, sandbox.spec, disk_only)
        kept = None if disk_only else opened.memory
        generation, folder = new_id(IdKind.GENERATION), None
        entry.step("disk.begin")
        undos.push("disk", lambda: disks.delete(sandbox.id))
        fresh = await disks.begin_disk(sandbox.id, sandbox.spec.limits.disk)
        if kept:
            folder = await disks.make_memory_folder(sandbox.id, generation)
        entry.step("import.unpack")
        left_out = await self._unpacked(opened, frames, Folders(fresh, folder), skipping=disk_only)
        entry.step("disk.finish")
        await disks.finish_disk(sandbox.id)
        if kept:
            await disks.snapshot(sandbox.id, generation)
        await disks.sync()
        devices = f"; {left_out} devices were left out" if left_out else ""
        record = Record(sandbox, operation.epoch, 0, secrets.token_urlsafe(32), owed=ANEW)
        if not kept:
            aside = "; its memory was left aside" if opened.memory else ""
            return replace(record, phase=Phase.STOPPED, reason=f"imported from a file{aside}{devices}")
        return replace(
            record,
            phase=Phase.PAUSED,
            hold=Hold.DISK,
            generation=replace(kept.generation, id=generation),
            agent=kept.agent,
            foreign=Foreign(generation, opened.carried.source, kept.token),
            reason=f"imported from a file, with its memory{devices}",
        )

    async def _opened(self, frames: Frames, key: str) -> Opened:
        """Raises InvalidArgument."""
        under = parse_key(key)
        wrapped, manifest = await frames.head()
        try:
            data_key = keys.unwrap(wrapped.hex(), under, _OWNER)
            if len(data_key) != KEY_BYTES:
                raise DamagedError("its key is none")
        except DamagedError as error:
            raise InvalidArgument(
                "the key does not open this file, or the beginning of the file is damaged",
                hint="use the key that `sandkeep export` gave for this very file",
                field="key",
            ) from error
        with _refusing():
            facts = await self._worker.look(manifest, data_key, signing(data_key))
            return believed(data_key, manifest, facts)

    async def _check(self, opened: Opened, spec: Spec, disk_only: bool) -> None:
        """Raises Unsupported, naming what may be done instead; NoCapacity."""
        view = SandboxOnNode("", "", spec)
        lifecycle.check_possible(self._parts, view)
        if opened.memory and not disk_only:
            record = Record(view, 0, 0, "", agent=opened.memory.agent)
            try:
                hibernation.check_fits(self._parts, record, opened.memory.generation)
            except SandkeepError as error:
                raise type(error)(error.message, hint=_DISK_ONLY, **error.details) from error
        admit_disk(await self._parts.capacity(), self._parts.settings.rules, opened.carried.size)

    async def _unpacked(self, opened: Opened, frames: Frames, folders: Folders, *, skipping: bool) -> int:
        """Devices that were left out. skipping: some pieces may not be wanted."""
        turn = anyio.Lock()

        async def get(name: str) -> bytes:
            async with turn:  # they are asked for in the order in which they come
                while (found := await _piece(frames)) is not None:
                    if found[:NAME].hex() == name:
                        return found[NAME:]
                    if not skipping:
                        raise InvalidArgument("the file is refused: a piece is not in its place", hint=_COPY_AGAIN)
                raise InvalidArgument("the file is refused: a piece is missing", hint=_COPY_AGAIN)

        with _refusing():
            try:
                left_out, _ = await self._worker.unpack(
                    folders, opened.manifest, opened.key, signing(opened.key), get, strange=True
                )
            except NoCapacity as error:
                error.hint = (
                    "make room in the pool; or, since here it shares nothing with a template, give it a larger disk "
                    "(sandkeep update NAME --disk SIZE) and export it again"
                )
                raise
        while await _piece(frames) is not None:
            if not skipping:
                raise InvalidArgument("the file is refused: it has more pieces than it names", hint=_COPY_AGAIN)
        if not await frames.ends():
            raise InvalidArgument("the file is refused: something follows after its end", hint=_COPY_AGAIN)
        return left_out


_DISK_ONLY = "its disk alone may come in, and boots: sandkeep import FILE --disk-only"


async def _piece(frames: Frames) -> bytes | None:
    """None: that was the last."""
    kind, data = BEAT, b""
    while kind == BEAT and not data:
        kind, data = await frames.next(NAME + SEALED)
    if kind == PIECE:
        return data
    if frame(kind, data) != LAST:
        raise InvalidArgument("the file is refused: a part of it is where none can be", hint=_COPY_AGAIN)
    return None


def _check_exportable(record: Record) -> None:
    """Raises Conflict, Unsupported."""
    called = record.sandbox.name or record.id
    if record.spec.persistence in CANNOT:
        raise Unsupported(
            f"persistence={record.spec.persistence} keeps nothing of its own that could be exported",
            hint="export a sandbox of persistence=volume or full",
            field="persistence",
        )
    if record.phase is Phase.ARCHIVED:
        raise Conflict("it is archived: its disk is not here", hint=f"bring it back first: sandkeep wake {called}")
    if record.phase is Phase.STOPPED or (record.phase is Phase.PAUSED and record.hold is Hold.DISK):
        return
    hint = f"stop it first: sandkeep stop {called}"
    if record.spec.persistence is Persistence.FULL:
        hint = (
            f"pause it to disk, and its memory goes along: sandkeep pause {called}; or stop it: sandkeep stop {called}"
        )
    held = " in memory" if record.phase is Phase.PAUSED else ""
    raise Conflict(f"it is {record.phase}{held}: only what is stopped, or paused on disk, can be exported", hint=hint)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except DamagedError as error:
        raise InvalidArgument(f"the file is refused: {error}", hint=_COPY_AGAIN) from error
