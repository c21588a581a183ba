"""The daemons as units, where systemd is pid 1: `up`, `down`, `purge` and `support-bundle` ask here."""

import sys
from pathlib import Path

from sandkeep.app.daemon import RUNNER_CAPABILITIES
from sandkeep.app.settings import Settings
from sandkeep.app.units import UnitFacts, UnitNames, units
from sandkeep.lib import process

_FOLDER = Path("/etc/systemd/system")


def is_pid_1() -> bool:
    return Path("/run/systemd/system").is_dir()


def installed(instance: str) -> bool:
    """False for a daemon that something else started on a host with systemd, such as a test."""
    return is_pid_1() and (_FOLDER / UnitNames(instance).sandboxes).exists()


async def start(settings: Settings) -> None:
    """Install and enable the units, and start them now."""
    facts = UnitFacts(
        settings.instance, Path(sys.executable), settings.user, RUNNER_CAPABILITIES, await _version(), settings.watchdog
    )
    for name, text in units(facts).items():
        path = _FOLDER / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    await process.run(["systemctl", "daemon-reload"], timeout=30)
    await process.run(["systemctl", "enable", "--now", *UnitNames(settings.instance).services], timeout=60)


async def _version() -> int:
    """0 where it does not say."""
    said = (await process.run(["systemctl", "--version"], timeout=30, check=False)).stdout.split()
    return int(said[1]) if said[1:] and said[1].isdigit() else 0


async def stop(instance: str) -> None:
    """The daemons; the sandboxes' unit stays, as they do."""
    names = UnitNames(instance)
    await process.run(["systemctl", "stop", names.server, names.runner], timeout=60, check=False)


async def host_stops(instance: str) -> bool:
    """Whether a reboot or shutdown of the host is under way, and not only a stop of our units."""
    if not installed(instance):
        return False
    try:
        said = await process.run(["systemctl", "is-system-running"], timeout=10, check=False)
    except process.ProgramTimeoutError:
        return False
    return said.stdout.strip() == "stopping"


async def restarts(unit: str) -> int:
    """How often it has ended and was started again."""
    argv = ["systemctl", "show", "--property=NRestarts", "--value", unit]
    text = (await process.run(argv, timeout=30, check=False)).stdout.strip()
    return int(text) if text.isdigit() else 0


async def remove(instance: str) -> None:
    """The units, once no sandbox is left in them."""
    names = UnitNames(instance)
    await process.run(["systemctl", "disable", "--now", *names.services], timeout=60, check=False)
    await process.run(["systemctl", "stop", names.slice], timeout=60, check=False)
    for name in (*names.services, names.slice):
        (_FOLDER / name).unlink(missing_ok=True)
    if not any(_FOLDER.glob(UnitNames("*").sandboxes)):  # to stop it stops what is in it
        await process.run(["systemctl", "stop", names.all], timeout=60, check=False)
    await process.run(["systemctl", "daemon-reload"], timeout=30, check=False)


async def journal(instance: str) -> str:
    """What the daemons said last."""
    names = UnitNames(instance)
    which = [argument for name in (names.runner, names.server) for argument in ("--unit", name)]
    return (await process.run(["journalctl", "--no-pager", "--lines=20000", *which], timeout=60)).stdout


async def said_last(unit: str) -> str:
    """Its last lines in the journal; empty when they cannot be had."""
    argv = ["journalctl", "--no-pager", "--output=cat", "--lines=20", "--unit", unit]
    return (await process.run(argv, timeout=30, check=False)).stdout
