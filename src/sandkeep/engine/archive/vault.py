"""The store's side of archives: where pieces and manifests lie, and what is believed of them. Used by engine/archiving.

    sandboxes/<sandbox>/key                     its data key, wrapped; goes first when the archive is deleted
    sandboxes/<sandbox>/manifests/<sequence>
    sandboxes/<sandbox>/snapshots/<snapshot>    the manifest of one of its snapshots
    sandboxes/<sandbox>/pieces/<name>           of all of them

What the store gives is a stranger's until it was checked: a manifest by its signature and by the hash that the node has
kept, a piece by the confined program.
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from sandkeep.contracts.objects import Objects
from sandkeep.domain.errors import Conflict, NotFound, TooLarge
from sandkeep.engine.archive import keys
from sandkeep.engine.archive.format import (
    MOST_MANIFEST,
    SEALED,
    Body,
    Head,
    Manifest,
    hash_of,
    is_name,
    read_head,
    read_manifest,
    write_manifest,
)
from sandkeep.engine.archive.keys import DamagedError, DataKey, KeyRing
from sandkeep.engine.archive.worker import Folders, Formerly, Proof, Worker

Facts = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Chain:
    """What the node must keep of a sandbox's archive. key: wrapped; sequence, hash: of the newest manifest that was verified
    (0, '': none yet); snapshot: the one of its snapshots that this is the archive of, '': the sandbox itself."""

    key: str
    sequence: int = 0
    hash: str = ""
    snapshot: str = ""


@dataclass(frozen=True)
class Unpacked:
    """left_out: devices; first: the inode of the first name, if the others follow it (former.py); stored: names and sizes of all
    pieces of the archive, as a hash; '' when not all of them were opened."""

    left_out: int
    first: int | None = None
    stored: str = ""


@dataclass(frozen=True)
class Since:
    """What a disk is, seen from the archive that it was unpacked from: as Unpacked has it, and the inodes touched since."""

    first: int
    stored: str
    touched: frozenset[int]


class Vault:
    def __init__(self, objects: Objects, ring: KeyRing, worker: Worker) -> None:
        self._objects = objects
        self._ring = ring
        self._worker = worker

    @property
    def where(self) -> str:
        return self._objects.where

    def worker(self) -> Worker:
        """Another one, for what goes past the store."""
        return self._worker.another()

    def new_chain(self, sandbox_id: str, project_id: str) -> Chain:
        return Chain(keys.wrap(keys.new_key(), self._ring.project(project_id), sandbox_id))

    async def write(
        self,
        sandbox_id: str,
        project_id: str,
        chain: Chain,
        folders: Folders,
        needs: Facts,
        record: Facts,
        now: float,
        since: Since | None = None,
    ) -> tuple[Chain, Body]:
        """Upload what the store has not, and a manifest over all; then read everything back. Only then it counts. `since`: the
        disk was unpacked from the newest archive of this chain; what was opened then is not read back, but looked for. Raises
        Conflict for what did not come back as it was: what is damaged is removed, so that the next try puts it again."""
        with _refusing(sandbox_id):
            key = self._data_key(sandbox_id, project_id, chain)
        await self._objects.put(f"{_home(sandbox_id)}/key", chain.key.encode())
        known = {_last(name) for name in await self._objects.sizes(f"{_home(sandbox_id)}/pieces")}
        former = await self._former(sandbox_id, chain, since) if since else None
        signing = self._ring.signing()
        put: set[str] = set()

        async def put_piece(name: str, data: bytes) -> None:
            put.add(name)
            await self._objects.put(_piece(sandbox_id, name), data)

        body, after = None, chain

        async def prove(packed: Body) -> Proof:
            nonlocal body, after
            body = replace(packed, needs=needs, record=record)
            head = Head(sandbox_id, project_id, chain.sequence + 1, chain.hash, now)
            manifest = write_manifest(head, body, DataKey(key), signing)
            after = replace(chain, sequence=head.sequence, hash=hash_of(manifest))
            await self._objects.put(_manifest(sandbox_id, after), manifest)
            sure = await self._sure(sandbox_id, DataKey(key), former, since) if former and since else set()
            return Proof(await self._manifest(sandbox_id, after), sure - put, partial(self._piece, sandbox_id))

        with _refusing(sandbox_id):
            try:
                names = {name for name in known if is_name(name)}
                await self._worker.pack(folders, key, signing, names, put_piece, prove, former)
            except DamagedError as error:
                await self._objects.delete([_piece(sandbox_id, name) for name in error.pieces if is_name(name)])
                raise
        assert body is not None
        return after, body

    async def _former(self, sandbox_id: str, chain: Chain, since: Since) -> Formerly | None:
        """None when its manifest is not as it was: then everything is read, and there is a new one."""
        try:
            manifest = await self._manifest(sandbox_id, chain)
        except DamagedError:
            return None
        get = partial(self._piece, sandbox_id)
        return Formerly(manifest, since.first, since.touched, get)

    async def _sure(self, sandbox_id: str, key: DataKey, former: Formerly, since: Since) -> set[str]:
        """Pieces of the former archive, when each of them lies there with the size that it had when it was opened."""
        pieces = read_manifest(former.manifest, key, self._ring.signing()).body.pieces()
        found = {_last(name): size for name, size in (await self._objects.sizes(f"{_home(sandbox_id)}/pieces")).items()}
        there = {name: found[name] for name in pieces if name in found}
        return pieces if _stored(there) == since.stored else set()

    async def read(self, sandbox_id: str, project_id: str, chain: Chain) -> Manifest:
        """The manifest that the node has kept the hash of. Raises Conflict for any other."""
        with _refusing(sandbox_id):
            key = self._data_key(sandbox_id, project_id, chain)
            return read_manifest(await self._manifest(sandbox_id, chain), DataKey(key), self._ring.signing())

    async def unpack(self, sandbox_id: str, project_id: str, chain: Chain, folders: Folders) -> Unpacked:
        """Into empty folders. Raises Conflict for what is damaged, NoCapacity."""
        opened: dict[str, int] = {}
        left_out, first = await self._unpack(sandbox_id, project_id, chain, folders, self._worker.unpack, opened)
        pieces = (await self.read(sandbox_id, project_id, chain)).body.pieces()
        return Unpacked(left_out, first, _stored(opened) if opened.keys() == pieces else "")

    async def rehearse(self, sandbox_id: str, project_id: str, chain: Chain, folders: Folders) -> None:
        """As `unpack`, and what was made is compared with the manifest. Changes nothing in the store. Raises the same."""
        await self._unpack(sandbox_id, project_id, chain, folders, self._worker.rehearse)

    async def _unpack(
        self,
        sandbox_id: str,
        project_id: str,
        chain: Chain,
        folders: Folders,
        work: Callable[..., Awaitable[T]],
        opened: dict[str, int] | None = None,
    ) -> T:
        """opened: gets the size of each piece that was."""

        async def get(name: str) -> bytes:
            piece = await self._piece(sandbox_id, name)
            if opened is not None:
                opened[name] = len(piece)
            return piece

        with _refusing(sandbox_id):
            key = self._data_key(sandbox_id, project_id, chain)
            manifest = await self._manifest(sandbox_id, chain)
            return await work(folders, manifest, key, self._ring.signing(), get)

    async def _piece(self, sandbox_id: str, name: str) -> bytes:
        """Empty for what is not there, or is none by its size: whoever opens it says so."""
        try:
            return await self._objects.get(_piece(sandbox_id, name), SEALED)
        except (NotFound, TooLarge):
            return b""

    async def _manifest(self, sandbox_id: str, chain: Chain) -> bytes:
        """Raises DamagedError for any but the one that the node knows, saying what is in its place."""
        try:
            found = await self._objects.get(_manifest(sandbox_id, chain), MOST_MANIFEST)
        except (NotFound, TooLarge) as error:
            raise DamagedError("its manifest is not in the store, or larger than it may be") from error
        if hash_of(found) != chain.hash:
            head = read_head(found, self._ring.signing())
            if head.sandbox != sandbox_id:
                raise DamagedError(f"the manifest is that of another sandbox, {head.sandbox}")
            if head.sequence != chain.sequence:
                raise DamagedError(f"the manifest is the {head.sequence}. of its chain, not the {chain.sequence}.")
            raise DamagedError("the manifest is not the one that was verified")
        return found

    def _data_key(self, sandbox_id: str, project_id: str, chain: Chain) -> bytes:
        """Raises DamagedError."""
        return keys.unwrap(chain.key, self._ring.project(project_id), sandbox_id)

    # -- what is no longer needed

    async def prune(self, sandbox_id: str, chains: Iterable[Chain], needed: set[str]) -> None:
        """Pieces of interrupted, older and deleted archives, and their manifests. chains: all that stay of the sandbox and its
        snapshots; needed: the pieces of all these."""
        home, stay = _home(sandbox_id), {_manifest(sandbox_id, chain) for chain in chains}
        manifests = await self._objects.sizes(f"{home}/manifests") | await self._objects.sizes(f"{home}/snapshots")
        await self._objects.delete([key for key in manifests if key not in stay])
        pieces = await self._objects.sizes(f"{home}/pieces")
        await self._objects.delete([key for key in pieces if _last(key) not in needed])

    async def forget(self, sandbox_id: str, chain: Chain) -> None:
        """Its manifest. Idempotent."""
        await self._objects.delete([_manifest(sandbox_id, chain)])

    async def erase(self, sandbox_id: str) -> None:
        """The wrapped key first: without it the rest is noise. Idempotent."""
        home = _home(sandbox_id)
        await self._objects.delete([f"{home}/key"])
        await self._objects.delete(list(await self._objects.sizes(home)))

    async def size(self, sandbox_id: str, body: Body) -> int:
        """Bytes in the store of what an archive consists of; others may need some of it, too."""
        wanted, found = body.pieces(), await self._objects.sizes(f"{_home(sandbox_id)}/pieces")
        return sum(size for key, size in found.items() if _last(key) in wanted)


def _home(sandbox_id: str) -> str:
    return f"sandboxes/{sandbox_id}"


def _piece(sandbox_id: str, name: str) -> str:
    return f"{_home(sandbox_id)}/pieces/{name}"


def _stored(sizes: dict[str, int]) -> str:
    lines = "".join(f"{name} {size}\n" for name, size in sorted(sizes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _last(key: str) -> str:
    return key.rpartition("/")[2]


@contextmanager
def _refusing(sandbox_id: str) -> Iterator[None]:
    try:
        yield
    except DamagedError as error:
        raise Conflict(
            f"the archive of {sandbox_id} is refused: {error}",
            hint="nothing was changed; put back from a copy of the store what is damaged",
            damaged=list(error.pieces[:20]),
        ) from error


def _manifest(sandbox_id: str, chain: Chain) -> str:
    if chain.snapshot:
        return f"{_home(sandbox_id)}/snapshots/{chain.snapshot}"
    return f"{_home(sandbox_id)}/manifests/{chain.sequence:08d}"
