"""The node's own disk: what its faults mean to callers, and a probe of it. Used wherever the engine writes its files."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from sandkeep.domain.errors import NoCapacity, SandkeepError, StorageFailed
from sandkeep.lib.files import remove_durably, write_durably

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FAULTS = frozenset({errno.EROFS, errno.EIO, errno.ENXIO, errno.ESHUTDOWN, errno.EUCLEAN})
RETRY_AFTER = 30.0


def storage_error(error: OSError, what: str) -> SandkeepError | None:
    """None when it is no fault of the disk."""
    said = error.strerror or str(error)
    if error.errno in _FULL:
        return NoCapacity(
            f"the host's disk is full: {what} cannot be written",
            hint="free some room in the file system of the data folder; what runs goes on, and this works again then",
            retry_after=RETRY_AFTER,
        )
    if error.errno in _FAULTS:
        return StorageFailed(
            f"the host's disk failed: {what} cannot be written ({said})",
            hint="look at the kernel's log of the host; what runs goes on",
            retry_after=RETRY_AFTER,
        )
    return None


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """Around a write that has to be durable. Raises NoCapacity, StorageFailed: nothing is then taken for written."""
    try:
        yield
    except OSError as error:
        found = storage_error(error, what)
        if found is None:
            raise
        raise found from error


def trouble(folder: Path) -> str:
    """Why nothing durable can be written here now; '' when it can. Blocks."""
    probe = folder / ".probe"
    try:
        with writing("a test file"):
            write_durably(probe, b"x")
            remove_durably(probe)
    except (SandkeepError, OSError) as error:
        return str(error)
    return ""
