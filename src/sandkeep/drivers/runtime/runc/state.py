"""What runc keeps on disk about its containers: `<root>/<id>/state.json`."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

_HEAD = re.compile(rb'\{"id":"[a-z0-9-]+","init_process_pid":(\d+),"init_process_start":(\d+),')
"""How runc writes it, its own few values first: to parse the rest, the whole configuration, takes half a millisecond."""
_HEAD_SIZE = 512


def init_pid(root: Path, machine_id: str) -> int | None:
    """The first process; None when there is no state, or the process of that id is another one by now."""
    try:
        with open(root / machine_id / "state.json", "rb") as file:
            head = file.read(_HEAD_SIZE)
            found = _HEAD.match(head)
            if found:
                pid, started = int(found[1]), int(found[2])
            else:
                state = json.loads(head + file.read())
                pid, started = int(state["init_process_pid"]), int(state["init_process_start"])
        return pid if _start(pid) == started else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _start(pid: int) -> int:
    """Ticks from the host's boot to the start of the process: field 22 of proc(5) stat; names may contain anything."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def known(root: Path) -> set[str]:
    with contextlib.suppress(FileNotFoundError):
        return set(os.listdir(root))
    return set()


def forget(root: Path, machine_id: str) -> None:
    """All that `runc delete` would remove once processes and groups are gone."""
    shutil.rmtree(root / machine_id, ignore_errors=True)
