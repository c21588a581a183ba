"""One level-1 quota group per sandbox: where its limit sits, over its disk and all its generations.

Simple quotas charge an extent to the subvolume that first wrote it, for as long as anything refers to it. A limit on
one subvolume would be escaped by every snapshot-and-clone; a group that each clone joins as it is made holds the sum.
The group's number and limit are xattrs on the sandbox's folder. The kernel hands numbers out: creating one that is
taken fails.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from sandkeep.drivers.disk.btrfs import ioctl
from sandkeep.drivers.disk.layout import LIMIT_NOTE

_LEVEL_ONE = 1 << 48
_GROUP, _LIMIT = "trusted.sandkeep.group", LIMIT_NOTE
_NO_LIMIT = 2**63 - 1


class Groups:
    """All methods block; call them from a worker thread. `mount` is the pool's mount point."""

    def __init__(self, mount: Path) -> None:
        self._mount = mount
        self._lock = threading.Lock()
        self._next = 0
        self._young: set[int] = set()

    @contextlib.contextmanager
    def joined(self, folder: Path, limit: int) -> Iterator[int]:
        """The group recorded on this sandbox's folder, with this limit; made and recorded when there is none. While
        the context lasts, `sweep` leaves the group alone."""
        known = recorded(folder)
        if known is not None:
            try:
                self.limit(folder, limit)
            except FileNotFoundError:
                pass  # a power cut kept the folder and lost the group
            else:
                yield known
                return
        group = self._make()
        try:
            os.setxattr(folder, _GROUP, str(group).encode(), follow_symlinks=False)
            self.limit(folder, limit)
            yield group
        finally:
            with self._lock:
                self._young.discard(group)

    def _make(self) -> int:
        with self._lock:
            if not self._next:
                used = (group for group in ioctl.groups(self._mount).usage if group >= _LEVEL_ONE)
                self._next = max(used, default=_LEVEL_ONE) + 1
            while True:
                group, self._next = self._next, self._next + 1
                with contextlib.suppress(FileExistsError):
                    ioctl.create_group(self._mount, group)
                    self._young.add(group)
                    return group

    def limit(self, folder: Path, limit: int) -> None:
        """Raises FileNotFoundError when the folder has no group."""
        group = recorded(folder)
        if group is None:
            raise FileNotFoundError(errno.ENOENT, "no quota group", str(folder))
        os.setxattr(folder, _LIMIT, str(limit).encode(), follow_symlinks=False)
        ioctl.limit_group(self._mount, group, limit)

    @contextlib.contextmanager
    def lifted(self, folder: Path) -> Iterator[None]:
        """No limit meanwhile: to remove a subvolume from within another, the kernel asks the quota for metadata first.
        `reapply` heals what a crash in here leaves."""
        group = recorded(folder)
        if group is not None:
            ioctl.limit_group(self._mount, group, _NO_LIMIT)
        try:
            yield
        finally:
            self.reapply((folder,))

    def reapply(self, folders: Iterable[Path]) -> None:
        """The limits as they are recorded."""
        for folder in folders:
            group, limit = recorded(folder), _number(folder, _LIMIT)
            if group is not None and limit is not None:
                with contextlib.suppress(FileNotFoundError):
                    ioctl.limit_group(self._mount, group, limit)

    def usage(self, folder: Path) -> int:
        group = recorded(folder)
        return (ioctl.group_usage(self._mount, group) or 0) if group is not None else 0

    def sweep(self, folders: Iterable[Path], *, alone: bool) -> int:
        """Remove the groups that nothing needs any more: of subvolumes that are gone and whose last extent is freed,
        then of sandboxes that have none of those left and no folder. `alone`: no clone is being made meanwhile.
        Returns how many were removed; what is still charged stays for a later sweep."""
        with self._lock:
            ioctl.sync(self._mount)  # usage is written at commits
            table, living = ioctl.groups(self._mount), ioctl.subvolume_ids(self._mount)
            newest = max(living, default=0)
            kept = {group for folder in folders if (group := recorded(folder)) is not None} | self._young
            gone: set[int] = set()
            for group, usage in sorted(table.usage.items()):
                if group < _LEVEL_ONE:
                    # A subvolume that another thread is making now has the highest id of all, and perhaps no tree yet.
                    dead = group >= ioctl.FIRST_FREE_OBJECTID and group not in living and (alone or group < newest)
                    removable = dead and usage == 0
                else:
                    removable = group not in kept and not table.members.get(group, set()) - gone
                if removable and self._remove(group):
                    gone.add(group)
            return len(gone)

    def _remove(self, group: int) -> bool:
        try:
            ioctl.remove_group(self._mount, group)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return True
            if error.errno in {errno.EBUSY, errno.ENOSPC}:
                return False
            raise
        return True


def recorded(folder: Path) -> int | None:
    """The group written on a sandbox's folder; None when there is no folder or no group."""
    return _number(folder, _GROUP)


def _number(folder: Path, name: str) -> int | None:
    try:
        return int(os.getxattr(folder, name, follow_symlinks=False))
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENODATA}:
            return None
        raise
