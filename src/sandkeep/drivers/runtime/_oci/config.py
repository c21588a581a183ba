"""The OCI configuration of a machine, for both runtimes. Pure: a plan in, a dictionary out.

Fields: https://github.com/opencontainers/runtime-spec/blob/main/config.md. Nothing in it is a secret: inside gVisor any
user reads the environment of process 1.
"""

from typing import Any

from sandkeep.contracts.runtime import MachinePlan
from sandkeep.domain.quantities import MIB
from sandkeep.drivers.runtime._oci.seccomp import profile

AGENT_FOLDER = "/.sandkeep"

_BOTH = "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP SETFCAP NET_BIND_SERVICE SYS_CHROOT AUDIT_WRITE"
_NATIVE = [f"CAP_{name}" for name in _BOTH.split()]
"""What Docker gives, without NET_RAW and MKNOD."""
_GVISOR = [f"CAP_{name}" for name in (*_BOTH.split(), "SYS_ADMIN", "SYS_PTRACE", "MKNOD")]
"""Capabilities of gVisor's own kernel, none on the host. SYS_ADMIN: after a restore the agent sets the host name."""

_MASKED = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel",
]
_READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def config(plan: MachinePlan, *, gvisor: bool, nofile: int, cgroup: str | None = None) -> dict[str, Any]:
    """`nofile`: limit of open files, not above this process's own; cgroup: path for runc, None when the caller put the
    runtime into the group already."""
    capabilities = _GVISOR if gvisor else _NATIVE
    value: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "hostname": plan.hostname,
        "root": {"path": str(plan.root), "readonly": False},
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [f"{AGENT_FOLDER}/agent", "--port", str(plan.agent_port)],
            "cwd": "/",
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"],
            "capabilities": {kind: list(capabilities) for kind in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": nofile, "soft": nofile}],
            "noNewPrivileges": False,  # sudo must work inside
        },
        "mounts": _mounts(plan, gvisor),
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in ("pid", "ipc", "uts", "mount", *(() if gvisor else ("cgroup",)))),
                {"type": "network", "path": str(plan.network.namespace)},
            ],
        },
    }
    if not gvisor:
        value["linux"] |= {
            "cgroupsPath": f"/{cgroup}",
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "rootfsPropagation": "private",
            "maskedPaths": _MASKED,
            "readonlyPaths": _READONLY,
            "seccomp": profile(),
            # so that ping and ports below 1024 need no capability; both belong to the machine's network namespace
            "sysctl": {"net.ipv4.ping_group_range": "0 2147483647", "net.ipv4.ip_unprivileged_port_start": "0"},
        }
    return value


def temporary_size(memory: int) -> int:
    """Bytes of /tmp: its content is memory and counts to the limit, so a full /tmp must leave room to live."""
    return max(16 * MIB, memory // 4)


def _mounts(plan: MachinePlan, gvisor: bool) -> list[dict[str, Any]]:
    size = temporary_size(plan.limits.memory)
    safe = ["nosuid", "noexec", "nodev"]
    mounts = [
        _mount("/proc", "proc", "proc", *safe),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", f"size={MIB}"),
        _mount("/dev/shm", "tmpfs", "shm", *safe, "mode=1777", f"size={size}"),  # noqa: S108
        _mount("/sys", "sysfs", "sysfs", *safe, "ro"),
        _mount("/tmp", "tmpfs", "tmpfs", "nosuid", "nodev", "mode=1777", f"size={size}"),  # noqa: S108
        _mount(AGENT_FOLDER, "bind", str(plan.agent), "rbind", "ro", "nosuid", "nodev", "rprivate"),
    ]
    if not gvisor:  # gVisor mounts its own devpts and knows no mqueue
        mounts.insert(2, _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", *_PTY))
        mounts.insert(4, _mount("/dev/mqueue", "mqueue", "mqueue", *safe))
        mounts.insert(6, _mount("/sys/fs/cgroup", "cgroup", "cgroup", *safe, "relatime", "ro"))
    return mounts


_PTY = ("ptmxmode=0666", "mode=0620", "gid=5")


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}
