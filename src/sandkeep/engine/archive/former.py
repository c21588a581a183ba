"""What a disk still has of the archive that it was unpacked from: entries whose files need not be read again. For the packer.

The unpacker makes one name after the other on an empty disk, and the file system numbers the inodes as they come: so an
inode leads to its entry. Which of them were touched since is the disk driver's to say. All others are what their entries say,
under whatever name they are found: names are always read.
"""

import os
import stat
from collections import Counter
from collections.abc import Container, Iterable

from sandkeep.engine.archive.format import Entry, kind_of

MOST_ENTRIES = 500_000
"""Of an archive with more, everything is read: entries are kept in memory."""


class Former:
    """`content`: its table of pieces; first: the inode of entry 1; touched: inodes that may be otherwise than they were made;
    known: pieces that the store has. `see` every file on the disk, then ask for their entries."""

    def __init__(
        self,
        entries: Iterable[Entry],
        content: tuple[bytes, ...],
        first: int,
        touched: Container[int],
        known: Container[bytes],
    ) -> None:
        self.content = content
        self._entries: dict[int, Entry] = {}
        self._members: Counter[int] = Counter()
        self._there: Counter[int] = Counter()
        self._seen: set[int] = set()
        self._device: int | None = None
        inode = first
        for number, entry in enumerate(entries):
            if not number or entry.kind in "hcb":  # the root was there before, and these have no inode of their own
                continue
            if entry.at:
                self._members[entry.at[0]] += 1
            if entry.kind in "df" and inode not in touched and all(content[piece] in known for piece in _pieces(entry)):
                self._entries[inode] = entry
            inode += 1

    def begin(self, root: os.stat_result) -> None:
        """The root of the disk: what is of another device was made by the guest, and has numbers of its own."""
        self._device = root.st_dev

    def see(self, found: os.stat_result) -> None:
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            if found.st_ino in self._seen:
                return
            self._seen.add(found.st_ino)
        entry = self._fitting(found)
        if entry and entry.at:
            self._there[entry.at[0]] += 1

    def entry(self, found: os.stat_result) -> Entry | None:
        """None: it has to be read. Small files share a piece: it is taken again only if each of them is there and as it was, so
        that nothing is kept which no file needs."""
        entry = self._fitting(found)
        if entry and entry.at and self._there[entry.at[0]] != self._members[entry.at[0]]:
            return None
        return entry

    def _fitting(self, found: os.stat_result) -> Entry | None:
        """What the kernel says of it must be what the entry says, too."""
        entry = self._entries.get(found.st_ino)
        if entry is None or found.st_dev != self._device:
            return None
        is_now = kind_of(found.st_mode), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns
        if is_now != (entry.kind, entry.mode, entry.uid, entry.gid, entry.mtime):
            return None
        return entry if entry.kind == "d" or entry.size == found.st_size else None


def _pieces(entry: Entry) -> list[int]:
    return [entry.at[0]] if entry.at else [piece for _, piece in entry.pieces]
