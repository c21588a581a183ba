"""Disks: what the engine may ask of the pool.

A *disk* is the writable root of one sandbox, made from a template or from a generation in milliseconds. A *generation*
is a read-only moment of a disk. A *template* is a read-only starting point. All three are named by ids that the engine
makes (typed ids, [a-z0-9_]); a driver never invents names and never follows a path that a guest controls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sandkeep.domain.capability import DiskCapabilities


@dataclass(frozen=True)
class PoolSpace:
    """Bytes. free: what can still be written before the pool is full; metadata_free: of it or beside it, what names and small
    files may still take, None where these have no room of their own."""

    total: int
    free: int
    metadata_free: int | None = None


@dataclass(frozen=True)
class PoolContents:
    """What is in the pool now, read from the pool itself. Keys are ids; disks and generations map to their owner
    (the sandbox id that they were made for)."""

    templates: frozenset[str]
    disks: dict[str, str]
    generations: dict[str, str]
    strangers: tuple[str, ...]
    """Names in the pool's folders that no call of this contract made."""


@dataclass(frozen=True)
class DiskFacts:
    """What the pool itself knows of a sandbox's disk, without any record of it. changed_at: seconds since the epoch."""

    changed_at: float
    template: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class GenerationSize:
    """Bytes in files, None where the driver cannot say. written: what it has that the one it came from has not; freed: what
    nothing else holds."""

    written: int | None = None
    freed: int | None = None


@dataclass(frozen=True)
class GenerationSizes:
    """By id. shares: (first, last, bytes) that nothing but the generations asked for holds, from which to which of them."""

    sizes: dict[str, GenerationSize] = field(default_factory=dict)
    shares: tuple[tuple[str, str, int], ...] = ()


@dataclass(frozen=True)
class Touched:
    """Where two moments may differ, as the file system itself knows: paths from the root, without a slash in front. No other
    file differs, but one below a path in `moved`, and the other names of one that does. written: those whose content was
    written; noted: whose extended attributes were; names: all paths of a file in the later moment, by its inode."""

    paths: frozenset[bytes]
    moved: frozenset[bytes] = frozenset()
    written: frozenset[bytes] = frozenset()
    noted: frozenset[bytes] = frozenset()
    names: Callable[[int], list[bytes]] = lambda inode: []


class Disks(Protocol):
    """Guarantees:

    * Every call is idempotent by name: making what exists with the same name returns it; deleting what is gone is no
      error.
    * When a making call returns, the thing is complete and survives kill -9. `sync()` makes it survive a power cut.
      After a crash in the middle of a call the thing is either absent or partial; `discard_partial()` removes partials.
    * A sandbox's limit holds for the sum of its disk and all its generations (one level-1 quota group per sandbox where
      the driver's capabilities say `hard_limit`): a guest meets EDQUOT or ENOSPC, never more space.
    * At its own limit a sandbox's disk can still be snapshotted, cloned from and deleted.
    * Raises NoCapacity when the pool itself is full, before anything was made; NotFound for an unknown source.
    """

    capabilities: DiskCapabilities

    async def open(self) -> None:
        """Make the pool usable (mount it). Idempotent. Raises Unavailable when the pool cannot be opened."""
        ...

    async def space(self) -> PoolSpace: ...

    async def contents(self) -> PoolContents: ...

    async def discard_partial(self) -> list[str]:
        """Remove what a crash left half-made. Call only when no other call is under way. Returns what was removed."""
        ...

    # templates

    async def begin_template(self, template_id: str) -> Path:
        """An empty, writable folder to fill with a root file system. It becomes a template by `finish_template`. What
        an unfinished earlier try left in it is removed; a finished template is returned as it is."""
        ...

    async def finish_template(self, template_id: str) -> int:
        """Seal it: read-only, durable. Returns its size in bytes."""
        ...

    async def template_from_disk(self, template_id: str, sandbox_id: str, generation_id: str | None = None) -> int:
        """A sealed template that is a copy of a sandbox's disk as it is now, or of one of its generations. Durable.
        Returns its size in bytes."""
        ...

    async def delete_template(self, template_id: str) -> None: ...

    # disks of sandboxes

    async def create(self, sandbox_id: str, template_id: str, limit: int) -> Path:
        """The sandbox's disk, cloned from a template. Returns its root folder. `limit` in bytes, over all it owns."""
        ...

    async def fork(self, sandbox_id: str, source_id: str, generation_id: str, limit: int) -> Path:
        """As `create`, cloned from a generation of another sandbox, which may be deleted afterwards."""
        ...

    async def begin_disk(self, sandbox_id: str, limit: int) -> Path:
        """An empty, writable folder to fill with what the sandbox's disk is to hold, under its limit. It becomes the disk by
        `finish_disk`. What an unfinished earlier try left is removed. Raises Conflict when there is a disk."""
        ...

    async def finish_disk(self, sandbox_id: str) -> Path:
        """What was begun is the sandbox's disk from now on."""
        ...

    async def begin_generation(self, sandbox_id: str, generation_id: str, limit: int) -> Path:
        """As `begin_disk`, for a generation of the sandbox, which need not have a disk: what `finish_generation` makes of it
        shares nothing with any other. Its memory folder is there, too. Raises Conflict when there is one of this name."""
        ...

    async def finish_generation(self, sandbox_id: str, generation_id: str) -> None:
        """What was begun is that generation from now on, read-only."""
        ...

    async def drop_disk(self, sandbox_id: str) -> None:
        """Remove the disk, begun or whole; generations stay. Without any, nothing of the sandbox is left."""
        ...

    def path(self, sandbox_id: str) -> Path:
        """Root folder of the sandbox's disk: the same for its whole life, also across rollback and resume."""
        ...

    async def set_limit(self, sandbox_id: str, limit: int) -> None: ...

    async def used(self, sandbox_id: str) -> int:
        """Bytes charged to the sandbox: disk and generations. As of the last commit of the file system."""
        ...

    async def facts(self, sandbox_id: str) -> DiskFacts:
        """For a disk whose record is lost. Raises NotFound."""
        ...

    async def sync(self) -> None:
        """All that was written to the pool so far survives a power cut."""
        ...

    async def delete(self, sandbox_id: str) -> None:
        """Remove the disk of a sandbox and all its generations. Returns when they are gone by name (the space may come
        back a little later). No process may still use the disk."""
        ...

    # generations

    async def snapshot(self, sandbox_id: str, generation_id: str) -> None:
        """Keep this moment of the sandbox's disk, read-only."""
        ...

    async def restore(self, sandbox_id: str, generation_id: str) -> Path:
        """Replace the sandbox's disk by a fresh writable clone of the generation, under the same path. What the disk
        held before is gone; the generation stays. No process may still use the disk."""
        ...

    async def check_generation(self, sandbox_id: str, generation_id: str) -> None:
        """Raises NotFound when `restore` would."""
        ...

    async def copy_generation(
        self, sandbox_id: str, generation_id: str, source_id: str, source_generation_id: str
    ) -> None:
        """A generation of another sandbox becomes one of this one's, too, with its memory files. Either may be dropped
        afterwards."""
        ...

    async def came_from(self, sandbox_id: str, owner_id: str, generation_id: str) -> bool | None:
        """Whether its disk is a clone of this generation of the owner's, by what the pool itself knows. None: it cannot tell."""
        ...

    async def drop_generation(self, sandbox_id: str, generation_id: str) -> None: ...

    async def changed(self, sandbox_id: str, generation_id: str) -> bool:
        """Whether the disk has changed since this generation was made of it, or it was restored from it. What looks changed may
        still be equal; what changed is never taken for equal. Raises NotFound."""
        ...

    async def measure(self, sandbox_id: str, generations: Sequence[tuple[str, str | None]]) -> GenerationSizes:
        """Of these generations of a sandbox, oldest first, each with the one it came from (None: the sandbox's template).
        Takes its time, between other work. Raises NotFound when one of them goes meanwhile."""
        ...

    def generation_path(self, sandbox_id: str, generation_id: str) -> Path:
        """Root folder of a generation, to read."""
        ...

    async def touched(self, before: tuple[str, str], after: tuple[str, str]) -> Touched | None:
        """What may differ between two generations, each (sandbox, generation), in a time that grows with what does. None: the
        driver cannot tell, so walk both. Raises NotFound, also when one is dropped meanwhile, which never waits for this."""
        ...

    async def mark(self, sandbox_id: str, name: str) -> int | None:
        """Note on the disk, which nobody uses, that it is at the moment `name`; an older note goes. Every generation and
        clone that is made of it from now on has the note, too; no guest can make one. Durable. Returns what `inodes_since` asks
        for. None: the driver cannot tell what comes after."""
        ...

    async def inodes_since(self, sandbox_id: str, name: str, moment: int) -> frozenset[int] | None:
        """Of the disk, which nobody uses: inodes that may be otherwise than at that moment, or that were not there. A file whose
        inode is none of these has the content, the attributes and the owner that it had; no number is ever given twice. None: it
        is not the continuation of a disk with this note, or the driver cannot tell. Raises NotFound."""
        ...

    def memory_folder(self, sandbox_id: str, generation_id: str) -> Path:
        """Where the memory files of a generation live (in the pool, root:0700, outside every disk). `snapshot` makes
        the folder or finds it made; `drop_generation` removes it with its files."""
        ...

    async def make_memory_folder(self, sandbox_id: str, generation_id: str) -> Path:
        """Make the (empty) folder before the memory is saved."""
        ...
