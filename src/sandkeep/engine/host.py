"""The host's memory, from /proc/meminfo."""

from pathlib import Path


def memory() -> tuple[int, int]:
    """Total and available bytes."""
    values = {}
    for line in Path("/proc/meminfo").read_text().splitlines()[:8]:
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0]) * 1024
    return values["MemTotal"], values["MemAvailable"]
