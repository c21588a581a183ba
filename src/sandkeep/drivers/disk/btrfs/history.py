"""What a disk's own trees tell of its history: whether it changed since a snapshot, and which bytes a snapshot alone holds.

Every block of a tree carries the number of the transaction that wrote it, every extent that which made it; a snapshot has
that of its own making. So whatever is younger than a snapshot was written after it, and is found without looking at the rest.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sandkeep.contracts.disks import GenerationSize, GenerationSizes
from sandkeep.drivers.disk.btrfs import ioctl

_INODE_ITEM, _EXTENT_DATA = 1, 108  # linux/btrfs_tree.h
_STEP = 128
"""Extents between two breaths: what measures is nobody's hurry."""


def changed(disk: Path, kept: Path) -> bool:
    """Whether `disk` differs from the snapshot `kept`, of which it is the continuation. The file system is synced."""
    now, then = ioctl.root_times(disk), ioctl.root_times(kept)
    # A snapshot writes the root of its source anew, and so does a clone its own: of these two that proves nothing yet.
    if then.parent == now.uuid and now.generation <= then.made:
        return False
    if now.parent == then.uuid and now.generation <= now.made:
        return False
    return any(True for _ in ioctl.items_since(disk, then.made))


def inodes_since(disk: Path, moment: int) -> frozenset[int]:
    """Those that were made or changed after this transaction: each inode has the number of that which last wrote it, whether its
    content changed, its attributes, or one of its names. The file system is synced."""
    found: set[int] = set()
    for item in ioctl.items_since(disk, moment):
        if item.kind == _INODE_ITEM:
            (written,) = struct.unpack_from("=8xQ", item.data)
        elif item.kind == _EXTENT_DATA:
            (written,) = struct.unpack_from("=Q", item.data)
        else:
            continue
        if written > moment:
            found.add(item.objectid)
    return frozenset(found)


@dataclass(frozen=True)
class Moment:
    """A generation's disk, and the one that it came from: another generation's, or a template's (None: unknown)."""

    id: str
    path: Path
    since: Path | None


@dataclass
class Measuring:
    """Steps through the extents of all of them; `result` when it is through."""

    moments: Sequence[Moment]
    result: GenerationSizes = field(default_factory=GenerationSizes)

    def steps(self) -> Iterator[None]:
        """Raises FileNotFoundError when one of them goes meanwhile."""
        place = {ioctl.subvolume_id(moment.path): number for number, moment in enumerate(self.moments)}
        owners: dict[int, frozenset[int]] = {}
        size: dict[int, int] = {}
        written: list[int | None] = []
        count = 0
        for moment in self.moments:
            if moment.since is None:
                written.append(None)
                continue
            total = 0
            for extent in _extents(moment):
                total += extent.size
                if extent.start and extent.start not in owners:
                    owners[extent.start] = frozenset(ioctl.roots_of(moment.path, extent.start))
                    size[extent.start] = extent.size
                    count += 1
                    if count % _STEP == 0:
                        yield
            written.append(total)
        freed = [0] * len(self.moments)
        spans: dict[tuple[int, int], int] = {}
        for start, roots in owners.items():
            if not roots or not roots <= place.keys():
                continue  # something else holds it, too: the disk as it is now, a fork, a template
            places = sorted(place[root] for root in roots)
            spans[places[0], places[-1]] = spans.get((places[0], places[-1]), 0) + size[start]
            if len(places) == 1:
                freed[places[0]] += size[start]
        names = [moment.id for moment in self.moments]
        self.result = GenerationSizes(
            {
                name: GenerationSize(known, None if known is None else back)
                for name, known, back in zip(names, written, freed, strict=True)
            },
            tuple((names[first], names[last], total) for (first, last), total in sorted(spans.items())),
        )


@dataclass(frozen=True)
class _Extent:
    """start: its address, 0 for what lies in the tree itself; size: bytes."""

    start: int
    size: int


_INLINE = 0
_HEAD = 21
"""Bytes of struct btrfs_file_extent_item before its address, or the data of an inline one."""


def _extents(moment: Moment) -> Iterator[_Extent]:
    """Those that were made after what it came from, each once."""
    assert moment.since is not None
    since = ioctl.root_times(moment.since)
    before = max(since.made, since.changed)  # a template was filled after it was made
    seen: set[int] = set()
    for item in ioctl.items_since(moment.path, before):
        if item.kind != _EXTENT_DATA or len(item.data) < _HEAD:
            continue
        (made,) = struct.unpack_from("=Q", item.data)
        if made <= before:
            continue
        if item.data[20] == _INLINE:
            yield _Extent(0, len(item.data) - _HEAD)
            continue
        start, size = struct.unpack_from("=2Q", item.data, _HEAD)
        if start and start not in seen:  # address 0 is a hole
            seen.add(start)
            yield _Extent(start, size)


def moment(generation: str, path: Path, since: Path | None) -> Moment:
    """`since` counts only if it is there."""
    with suppress(OSError):
        if since is not None:
            ioctl.subvolume_id(since)
            return Moment(generation, path, since)
    return Moment(generation, path, None)
