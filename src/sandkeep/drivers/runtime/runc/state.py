"""What runc keeps on disk about its containers: `<root>/<id>/state.json`."""

import contextlib
import json
import os
import shutil
from pathlib import Path


def init_pid(root: Path, machine_id: str) -> int | None:
    """The first process; None when there is no state, or the process of that id is another one by now."""
    try:
        state = json.loads((root / machine_id / "state.json").read_text())
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
