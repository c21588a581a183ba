"""What setup changed on the host beyond its own folders, written down so that purge can restore it."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandkeep.app.settings import Settings
from sandkeep.drivers.network.host import forwarding_enabled
from sandkeep.lib.files import write_json_durably

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def _forwarders() -> Path:
    """The host's own folder, whatever those of the instances are: a file for each instance that needs forwarding, and
    `before`. Gone after a reboot, as the setting is; like that, it belongs to one network namespace."""
    return Path(f"/run/sandkeep-forwarding-{os.stat('/proc/self/ns/net').st_ino}")


def noted(settings: Settings) -> dict[str, Any]:
    try:
        found = json.loads((settings.node_folder / "changes.json").read_bytes())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def note(settings: Settings, key: str, value: Any) -> None:
    """Before the change is made, so that it is never forgotten; the first value stands."""
    known = noted(settings)
    if key not in known:
        settings.node_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json_durably(settings.node_folder / "changes.json", {**known, key: value})


def enable_forwarding(settings: Settings, say: Callable[[str], None]) -> None:
    """Idempotent; each start of a runner calls it."""
    folder = _forwarders()
    folder.mkdir(mode=0o755, exist_ok=True)
    with contextlib.suppress(FileExistsError), (folder / "before").open("x") as before:
        before.write(FORWARD.read_text())
    (folder / f"{settings.prefix}.user").touch()
    if not forwarding_enabled():
        FORWARD.write_text("1")
        say("enabled IPv4 forwarding (purge takes it back)")


def restore_forwarding(settings: Settings) -> None:
    """The last instance that needed it puts back what was before the first."""
    folder = _forwarders()
    (folder / f"{settings.prefix}.user").unlink(missing_ok=True)
    before = folder / "before"
    if any(folder.glob("*.user")) or not before.exists():
        return
    if before.read_text().strip() == "0":
        FORWARD.write_text("0")
    shutil.rmtree(folder)
