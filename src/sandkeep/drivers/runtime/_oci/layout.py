"""Which control group hierarchies this host has: version 2 alone, version 1 alone, or both side by side (hybrid)."""

from dataclasses import dataclass
from pathlib import Path

from sandkeep.domain.errors import Unsupported

NEEDED = ("cpu", "memory", "pids", "freezer", "cpuacct")
_BUILT_IN = frozenset({"freezer", "cpuacct"})
"""Version 2 has these in every group: cgroup.freeze (Linux 5.2) and the usage in cpu.stat."""
_TYPES = {"cgroup": 1, "cgroup2": 2}
_SYSTEMD = "name=systemd"


@dataclass(frozen=True)
class Hierarchy:
    """One mounted tree of groups. controllers: what it controls (of version 1 also names such as `name=systemd`)."""

    path: Path
    version: int
    controllers: frozenset[str]


@dataclass(frozen=True)
class Layout:
    """all: every mounted hierarchy; chosen: for each controller that we need, the one that has it; tracking: those by
    which systemd knows what belongs to a unit, where ours is one."""

    all: tuple[Hierarchy, ...]
    chosen: dict[str, Hierarchy]
    tracking: tuple[Hierarchy, ...] = ()

    @property
    def used(self) -> tuple[Hierarchy, ...]:
        """Hierarchies that a machine's processes join, each once."""
        return tuple(dict.fromkeys((*self.chosen.values(), *self.tracking)))


def detect(mountinfo: str, parent: str = "") -> Layout:
    """`mountinfo` is the text of /proc/self/mountinfo; parent: path of the group that machines lie below. Raises
    Unsupported when a controller that we need is nowhere.

    A controller is bound to one hierarchy at a time. Version 1 comes first: on a hybrid host the version 2 tree has no
    controllers, and to join it costs a grace period of RCU (19 ms of a boot) that `tasks` of version 1 does not. Only
    below a unit of systemd's is it joined all the same: machines would be counted to the runner's unit, and end with
    what ends all of that."""
    found = tuple(_hierarchies(mountinfo))
    chosen: dict[str, Hierarchy] = {}
    for controller in NEEDED:
        for hierarchy in sorted(found, key=lambda h: h.version):
            built_in = hierarchy.version == 2 and controller in _BUILT_IN
            if controller in hierarchy.controllers or built_in:
                chosen[controller] = hierarchy
                break
        else:
            raise Unsupported(
                f"this host has no control group controller '{controller}'",
                hint="enable it in the kernel's command line, or delegate it to this container",
            )
    in_unit = any(part.endswith(".service") for part in Path(parent).parts)
    return Layout(found, chosen, tuple(h for h in found if in_unit and (h.version == 2 or _SYSTEMD in h.controllers)))


def _hierarchies(mountinfo: str) -> list[Hierarchy]:
    seen: dict[Path, Hierarchy] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, end = left.split(), right.split()
        if len(fields) < 5 or len(end) < 3 or end[0] not in _TYPES:
            continue
        path, version = Path(fields[4].replace("\\040", " ")), _TYPES[end[0]]
        if version == 2:
            file = path / "cgroup.controllers"
            names = file.read_text().split() if file.exists() else []
        else:
            names = [
                name for name in end[2].split(",") if name not in {"rw", "ro", "xattr", "noprefix", "clone_children"}
            ]
        seen[path] = Hierarchy(path, version, frozenset(names))
    return list(seen.values())
