"""The agent's binaries: shipped in the package, kept in content-addressed folders."""

import hashlib
import os
import platform
from pathlib import Path

from sandkeep.domain.errors import Unavailable
from sandkeep.lib.files import sync_folder

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def shipped_agent() -> Path:
    """The binary for this machine's architecture. Raises Unavailable."""
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    path = Path(__file__).parent.parent / "_agents" / f"linux-{architecture}" / "agent"
    path = Path(os.environ.get("SANDKEEP_AGENT", path))
    if not path.exists():
        raise Unavailable(
            f"this installation has no agent for {architecture}", hint="install the wheel, or build it: make install"
        )
    return path


def install_agent(folder: Path) -> Path:
    """Copy the shipped agent to folder/<sha256>/agent if that is not there, or is something else. Returns that folder."""
    data = shipped_agent().read_bytes()
    home = folder / hashlib.sha256(data).hexdigest()
    if not (home / "agent").exists() or (home / "agent").read_bytes() != data:
        home.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        home.chmod(0o755)  # every user inside of a machine sees it
        fresh = home / ".agent.new"
        with open(fresh, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o555)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(home / "agent")
        sync_folder(home)
    return home


def current_agent(folder: Path) -> Path:
    """The folder of the shipped agent, whether it is installed yet or not."""
    try:
        return folder / hashlib.sha256(shipped_agent().read_bytes()).hexdigest()
    except Unavailable:
        return folder / "missing"
