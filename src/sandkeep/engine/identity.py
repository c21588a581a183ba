"""What a sandbox is known by that lies on its disk: read from there before that disk is replaced by another sandbox's."""

import base64
import contextlib
import os
import re
from pathlib import Path

from anyio.to_thread import run_sync

from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Kept, Record
from sandkeep.lib import beneath

_HOST_KEY = re.compile(r"ssh_host_[a-z0-9]+_key(\.pub)?")
_MACHINE_ID = "machine-id"
_MOST, _LARGEST = 32, 64 << 10


def is_anothers(record: Record, kept: Kept) -> bool:
    """Whether the snapshot was taken of another sandbox."""
    return bool(kept.origin) and kept.origin != record.id


async def of_disk(parts: Parts, record: Record) -> dict[str, str]:
    """Contents in base64 by name, of the disk as it is now."""
    found = await run_sync(read, parts.disks.path(record.id))
    return {name: base64.b64encode(content).decode() for name, content in found.items()}


def read(disk: Path) -> dict[str, bytes]:
    """machine-id and SSH host keys. A guest made these files: what is no plain file of a sensible size is left out."""
    found: dict[str, bytes] = {}
    with contextlib.suppress(OSError), beneath.root(disk) as root:
        _add(root, _MACHINE_ID, f"etc/{_MACHINE_ID}", found)
        for name in _host_keys(root):
            _add(root, name, f"etc/ssh/{name}", found)
    return found


def _host_keys(root: int) -> list[str]:
    try:
        handle = beneath.exact(root, b"etc/ssh")
    except OSError:
        return []
    try:
        folder = beneath.opened(handle)
        try:
            return sorted(name for name in os.listdir(folder) if _HOST_KEY.fullmatch(name))[:_MOST]
        finally:
            os.close(folder)
    except OSError:
        return []
    finally:
        os.close(handle)


def _add(root: int, name: str, path: str, found: dict[str, bytes]) -> None:
    with contextlib.suppress(OSError):
        handle = beneath.exact(root, path.encode())
        try:
            with open(beneath.opened(handle), "rb") as file:
                content = file.read(_LARGEST + 1)
        finally:
            os.close(handle)
        if 0 < len(content) <= _LARGEST:
            found[name] = content
