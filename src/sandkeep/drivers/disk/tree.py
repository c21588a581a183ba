"""How large a tree is that a guest may have shaped, and whether it changed: links are never followed, depth does not matter."""

import contextlib
import os
import stat
from pathlib import Path

_DEEPEST = 4000


def tree_size(root: Path) -> int:
    """Bytes that the files and folders below `root` occupy; a file with several names counts once. What vanishes or
    cannot be opened meanwhile counts as nothing."""
    total, seen = 0, set[tuple[int, int]]()
    waiting: list[str] = [str(root)]
    device = os.lstat(root).st_dev
    while waiting:
        folder = waiting.pop()
        if len(folder) > _DEEPEST:  # near PATH_MAX nothing can be opened by path
            continue
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                        if (found.st_dev, found.st_ino) in seen:
                            continue
                        seen.add((found.st_dev, found.st_ino))
                    total += found.st_blocks * 512
                    if stat.S_ISDIR(found.st_mode) and found.st_dev == device:
                        waiting.append(entry.path)
    return total


def changed_since(root: Path, moment: int) -> bool:
    """Whether anything below `root` was changed at or after this time (nanoseconds since the epoch), as the kernel counts it.
    What cannot be looked at counts as changed."""
    waiting: list[str] = [str(root)]
    if os.lstat(root).st_ctime_ns >= moment:
        return True
    while waiting:
        folder = waiting.pop()
        if len(folder) > _DEEPEST:
            return True
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    if found.st_ctime_ns >= moment:
                        return True
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append(entry.path)
        except OSError:
            return True
    return False
