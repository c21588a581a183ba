"""What setup changed on the host beyond its own folders, written down so that purge can restore it."""

import json
from collections.abc import Callable
from typing import Any

from sandkeep.app.settings import Settings
from sandkeep.drivers.network.host import forwarding_enabled
from sandkeep.lib.files import write_json_durably

FORWARD = "/proc/sys/net/ipv4/ip_forward"


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
    if forwarding_enabled():
        return
    note(settings, "ip_forward", "0")
    with open(FORWARD, "w") as file:
        file.write("1")
    say("enabled IPv4 forwarding (purge takes it back)")
