"""Which version of Sandkeep wrote the node's folder. The runner marks it before it writes anything there; setup, up and the
runner refuse a folder of a newer version: what an older one does not know, it would lose.

Records are read with defaults for what versions before did not write, so that an older folder needs no more than the mark.
"""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from sandkeep.domain.errors import Conflict
from sandkeep.lib.files import write_json_durably
from sandkeep.telemetry.log import log

FORMAT = 1
_NAME = "format"


def refuse_newer(folder: Path, version: str) -> None:
    """Raises Conflict, with words, when a newer version has written there."""
    found = _mark(folder)
    by, number = str(found.get("version", "")), found.get("format", FORMAT)
    newer = not isinstance(number, int) or number > FORMAT or _comparable(by) > _comparable(version)
    if newer:
        raise Conflict(
            f"the data in {folder.parent} was written by Sandkeep {by or 'of a newer version'}, newer than this {version}",
            hint=f"install {by or 'that version'} or a newer one; nothing was changed",
        )


def mark(folder: Path, version: str) -> None:
    """Durable; idempotent. Raises Conflict as above. A disk that takes nothing now holds up no start: the next one marks it."""
    refuse_newer(folder, version)
    ours = {"format": FORMAT, "version": version}
    if _mark(folder) == ours:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json_durably(folder / _NAME, ours)
    except OSError as error:
        log("task.failed", "error", task="node.mark", error=repr(error))


def _mark(folder: Path) -> dict[str, Any]:
    """Empty: of a version that did not mark it, or damaged, which a write that is all or nothing does not leave."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / _NAME).read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def _comparable(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
