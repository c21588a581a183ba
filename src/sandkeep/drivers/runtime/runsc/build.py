"""The runsc on this host: which build it is, and what a memory image needs to be restored by it."""

import hashlib
import os
import platform
import re
import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sandkeep.domain.errors import Unsupported
from sandkeep.lib import process

AUTO, PTRACE, SYSTRAP = "auto", "ptrace", "systrap"


@dataclass(frozen=True)
class Build:
    """What an image and a host must have in common. sha256: of the binary; cpu: of the processor's features."""

    runtime: str
    version: str
    sha256: str
    platform: str
    arch: str
    cpu: str

    def requires(self) -> dict[str, Any]:
        return asdict(self)

    def check(self, requires: dict[str, Any]) -> None:
        """Raises Unsupported and names what differs."""
        names = {
            "runtime": "runtime",
            "version": "gVisor version",
            "sha256": "gVisor build",
            "platform": "gVisor platform",
            "arch": "architecture",
            "cpu": "set of processor features",
        }
        for field, own in asdict(self).items():
            if requires.get(field) != own:
                raise Unsupported(
                    f"this memory was saved with another {names[field]}",
                    hint="resume it on a host like the one that saved it, or start it from its disk",
                    saved=requires.get(field),
                    here=own,
                )


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def version(binary: Path) -> str:
    """Such as `20240729.0`, also of builds that say `release-20240729.0` or `0.0~20240729.0`. Raises Unsupported."""
    try:
        done = await process.run([str(binary), "--version"], timeout=10)
    except (process.ProgramError, process.ProgramMissingError, process.ProgramTimeoutError) as error:
        raise Unsupported(f"runsc does not run: {error}", hint="install gVisor's runsc") from error
    found = re.search(r"(?:release-|0\.0~)?(\d{8}\.\d+)", done.stdout)
    return found[1] if found else done.stdout.splitlines()[0][:80] if done.stdout else "unknown"


def choose_platform(setting: str, cpuinfo: str) -> str:
    """systrap lets an idle sandbox burn 35 to 48 ms of CPU a second when the host is itself a guest; ptrace 0.3 ms."""
    if setting != AUTO:
        return setting
    return PTRACE if "hypervisor" in cpu_features(cpuinfo) else SYSTRAP


def cpu_features(cpuinfo: str) -> list[str]:
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return sorted(value.split())
    return []


def probe(binary: Path, found_version: str, chosen_platform: str) -> Build:
    """Blocks for about 50 ms (hash of 30 MB)."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    cpu = hashlib.sha256(" ".join(cpu_features(cpuinfo)).encode()).hexdigest()[:16]
    return Build("gvisor", found_version, digest(binary), chosen_platform, platform.machine(), cpu)


def open_files_limit() -> int:
    return min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def online_cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))
