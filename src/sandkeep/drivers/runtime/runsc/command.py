"""Command lines of runsc and what has to be true around it. Pure.

runsc is started in a mount namespace of its own that ends with it, in which
* /proc/sys/net is covered: 20240729 takes a network namespace that shows net/core/rmem_default for the host's and
  refuses it, and newer kernels show that file in every one (upstream asks another file since 2024-07-31);
* /proc/meminfo says the sandbox's own memory: runsc tells its guest what stands there. (Asked to read the limit from
  control groups, it would make one in each hierarchy, and the boot took 30 ms more.)
* the agent's folder is a read-only mount of the host's kernel: gVisor's own "ro" is not enough, an open with O_TRUNC
  inside emptied the file that all sandboxes share (its refusal comes after the host's file was opened).
A namespace made for each start sees the host's mounts of that moment and pins none of them.
"""

import random
from collections.abc import Sequence
from math import ceil
from pathlib import Path

_LAUNCH = (
    'while [ "$1" != -- ]; do echo 0 > "$1" || exit 90; shift; done; shift; mount -n -a -T "$0" || exit 91; exec "$@"'
)
"""$0: fstab; then files to write 0 into (control groups), `--`, and the program."""


def launcher(fstab: Path, entrances: Sequence[str], cpus: Sequence[int]) -> list[str]:
    """Prefix of a command: enters the groups, covers files, becomes the program. cpus: where it may run, none: all."""
    return [
        *(["taskset", "--cpu-list", ",".join(map(str, cpus))] if cpus else []),
        *("unshare", "--mount", "--propagation", "private", "--"),
        *("/bin/sh", "-c", _LAUNCH, str(fstab), *entrances, "--"),
    ]


def fstab(meminfo: Path, agent: Path) -> str:
    covered, kept = _escaped(meminfo), _escaped(agent)
    return (
        "none /proc/sys/net tmpfs size=4k,ro 0 0\n"
        f"{covered} /proc/meminfo none bind 0 0\n"
        f"{kept} {kept} none bind,ro 0 0\n"
    )


def _escaped(path: Path) -> str:
    return str(path).replace("\\", "\\134").replace(" ", "\\040")


def meminfo(memory: int) -> str:
    return f"MemTotal:       {memory // 1024} kB\n"


def visible_cpus(cpus: float, online: Sequence[int]) -> list[int]:
    """Processors on which gVisor is started, so that its guest counts as many as it may use; afterwards it may run on
    all of them. Not fewer than two, as gVisor's own option for this has it. Empty: all."""
    count = max(2, ceil(cpus))
    return [] if count >= len(online) else sorted(random.sample(list(online), count))


def global_flags(root: Path, platform: str, panic_log: Path) -> list[str]:
    """overlay2=none: writes go to the disk at once, so that a snapshot of it has them. net-disconnect-ok: else one open
    connection fails a checkpoint. ignore-cgroups: the launcher has entered ours."""
    return [
        f"--root={root}",
        f"--platform={platform}",
        "--network=sandbox",
        "--overlay2=none",
        "--file-access=exclusive",
        "--directfs=true",
        "--net-disconnect-ok",
        "--ignore-cgroups",
        f"--panic-log={panic_log}",
    ]


def run(machine_id: str, bundle: Path) -> list[str]:
    return ["run", "--detach", f"--bundle={bundle}", machine_id]


def restore(machine_id: str, bundle: Path, image: Path) -> list[str]:
    return ["restore", "--detach", f"--bundle={bundle}", f"--image-path={image}", machine_id]
