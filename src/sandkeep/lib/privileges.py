"""What a process gives up for good. Each daemon calls this at its start, before its first thread: all but the user is a
thread's own."""

import ctypes
import os
import resource
from collections.abc import Iterable

_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 8, 23, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522

_NAMES = """
chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service
net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin
sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override
mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore
"""

CAPABILITIES = tuple(_NAMES.split())
"""By their numbers: linux/capability.h."""


def leave_no_trace() -> None:
    """New files are for their owner alone, and neither a crash nor another process of the same user shows this one's
    memory. The limit of cores is 1 byte and holds for all children: it is too little for a file, and unlike 0 it also
    keeps the kernel from starting a program of core_pattern (fs/coredump.c)."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    _prctl(_PR_SET_DUMPABLE, 0)


def use_descriptors() -> None:
    """All that the limit allows: shells start programs with 1024, which a few hundred connections use up."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def never_gain() -> None:
    """No program that this thread runs gets more rights than it has, whoever owns its file."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def keep_capabilities(kept: Iterable[str]) -> None:
    """Only these, for this process and all that it will run. Nothing to do for who has none."""
    if os.geteuid() != 0:
        return
    numbers = {CAPABILITIES.index(name) for name in kept}
    number = 0
    while (present := _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:  # fails for the first unknown to the kernel
        if present and number not in numbers:
            _prctl(_PR_CAPBSET_DROP, number)
        number += 1
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _hold(numbers)


def _hold(numbers: set[int]) -> None:
    """These in effect, of those that this thread is permitted, and no others."""
    head = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable of capabilities 0 to 31, then of 32 to 63
    _checked(_libc.capget(head, sets), "capget")
    mask = sum(1 << number for number in numbers)
    for half in (0, 3):
        sets[half + 1] &= mask >> (half // 3 * 32) & 0xFFFFFFFF
        sets[half], sets[half + 2] = sets[half + 1], 0
    _checked(_libc.capset(head, sets), "capset")


def become_with(user: int, group: int, kept: Iterable[str]) -> None:
    """As `become`, but these capabilities stay, in effect and not for what it would execute. Raises OSError for who has not
    been root."""
    numbers = {CAPABILITIES.index(name) for name in kept}
    needed = ("setgid", "setuid", "setpcap")
    keep_capabilities({*kept, *needed})
    os.setgroups([])
    os.setresgid(group, group, group)
    for name in needed:
        _prctl(_PR_CAPBSET_DROP, CAPABILITIES.index(name))
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setresuid(user, user, user)
    _prctl(_PR_SET_KEEPCAPS, 0)
    _hold(numbers)


def become(user: int, group: int) -> None:
    """Another user for good: no groups, no capabilities, none to come back. Nothing to do when started as somebody."""
    if os.geteuid() != 0:
        return
    needed = ("setgid", "setuid", "setpcap")
    keep_capabilities(needed)
    os.setgroups([])
    os.setresgid(group, group, group)
    for name in needed:
        _prctl(_PR_CAPBSET_DROP, CAPABILITIES.index(name))
    os.setresuid(user, user, user)  # the last three leave with it


_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    _checked(_libc.prctl(option, value, 0, 0, 0), f"prctl({option}, {value})")


def _checked(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), what)
