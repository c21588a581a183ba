"""What runsc keeps on disk about its containers: `<root>/<id>_sandbox:<id>.state`, JSON, and a control socket."""

import json
from dataclasses import dataclass
from pathlib import Path

_SUFFIX = ".state"


@dataclass(frozen=True)
class Container:
    """sentry: process of the guest's kernel; gofer: process that opened its files; socket: control socket."""

    sentry: int
    gofer: int
    socket: str


def load(root: Path, machine_id: str) -> Container | None:
    """None when there is no state or none that can be read (runsc was killed while it wrote)."""
    try:
        state = json.loads((root / f"{_stem(machine_id)}{_SUFFIX}").read_text())
        sandbox = state["sandbox"]
        return Container(int(sandbox["pid"]), int(state.get("goferPid") or 0), str(sandbox["controlSocketPath"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def known(root: Path) -> set[str]:
    return {path.name.partition("_sandbox:")[0] for path in root.glob("*_sandbox:*")}


def forget(root: Path, machine_id: str) -> None:
    container = load(root, machine_id)
    for path in (
        root / f"{_stem(machine_id)}{_SUFFIX}",
        root / f"{_stem(machine_id)}.lock",
        root / f"runsc-{machine_id}.sock",
        *([Path(container.socket)] if container and container.socket.startswith("/") else []),
    ):
        path.unlink(missing_ok=True)


def _stem(machine_id: str) -> str:
    return f"{machine_id}_sandbox:{machine_id}"
