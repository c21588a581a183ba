"""A process that handles a stranger's bytes: nothing but some folders is there for it, and most system calls are not.

Called by such a program at its start, as root, after it has imported all that it needs: afterwards there are no files.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sandkeep.lib import privileges

_NEWNS, _NEWUTS, _NEWIPC, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_DETACH = 2
_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_X32 = 0x40000000
_PLACE = "/tmp"  # noqa: S108  # a mount point, in a mount namespace of our own


@dataclass(frozen=True)
class _Machine:
    """audit: its number in linux/audit.h; pivot_root, seccomp: of the calls that have no wrapper; refused: what a program that
    reads and writes files by names has no use for."""

    audit: int
    pivot_root: int
    seccomp: int
    refused: dict[str, int]


# Numbers: asm/unistd_64.h and asm-generic/unistd.h. open_by_handle_at opens any file of a file system, whatever the mount
# namespace shows, for who has dac_read_search.
_MACHINES = {
    "x86_64": _Machine(
        0xC000003E,
        155,
        317,
        {
            "open_by_handle_at": 304, "name_to_handle_at": 303, "execve": 59, "execveat": 322, "socket": 41,
            "socketpair": 53, "connect": 42, "bind": 49, "listen": 50, "ptrace": 101, "process_vm_readv": 310,
            "process_vm_writev": 311, "kill": 62, "tkill": 200, "tgkill": 234, "pidfd_open": 434,
            "pidfd_send_signal": 424, "pidfd_getfd": 438, "mount": 165, "umount2": 166, "pivot_root": 155,
            "chroot": 161, "unshare": 272, "setns": 308, "fsopen": 430, "fsmount": 432, "open_tree": 428,
            "move_mount": 429, "mount_setattr": 442, "bpf": 321, "perf_event_open": 298, "keyctl": 250,
            "add_key": 248, "request_key": 249, "userfaultfd": 323, "io_uring_setup": 425, "init_module": 175,
            "finit_module": 313, "kexec_load": 246, "fork": 57, "vfork": 58, "clone": 56, "clone3": 435, "quotactl": 179,
        },
    ),
    "aarch64": _Machine(
        0xC00000B7,
        41,
        277,
        {
            "open_by_handle_at": 265, "name_to_handle_at": 264, "execve": 221, "execveat": 281, "socket": 198,
            "socketpair": 199, "connect": 203, "bind": 200, "listen": 201, "ptrace": 117, "process_vm_readv": 270,
            "process_vm_writev": 271, "kill": 129, "tkill": 130, "tgkill": 131, "pidfd_open": 434,
            "pidfd_send_signal": 424, "pidfd_getfd": 438, "mount": 40, "umount2": 39, "pivot_root": 41,
            "chroot": 51, "unshare": 97, "setns": 268, "fsopen": 430, "fsmount": 432, "open_tree": 428,
            "move_mount": 429, "mount_setattr": 442, "bpf": 280, "perf_event_open": 241, "keyctl": 219,
            "add_key": 217, "request_key": 218, "userfaultfd": 282, "io_uring_setup": 425, "init_module": 105,
            "finit_module": 273, "kexec_load": 104, "clone": 220, "clone3": 435, "quotactl": 60,
        },
    ),
}  # fmt: skip


def confine(
    shown: dict[str, tuple[str, bool]],
    user: int,
    group: int,
    kept: Iterable[str],
    start: Callable[[], None] = lambda: None,
) -> None:
    """shown: name -> (folder, writable): each is then /name, and nothing else is there. No network; this user with these
    capabilities; it can gain nothing. start: starts its threads, since none can be started later; they have no more than
    it has. Raises OSError."""
    machine = _MACHINES[platform.machine()]
    privileges.never_gain()
    privileges.leave_no_trace()
    _call(_libc.unshare(_NEWNS | _NEWUTS | _NEWIPC | _NEWNET), "unshare")
    _mount("none", "/", None, _REC | _PRIVATE)
    folders = {name: (os.open(path, os.O_PATH | os.O_DIRECTORY), writable) for name, (path, writable) in shown.items()}
    _mount("tmpfs", _PLACE, "tmpfs", _NOSUID | _NODEV | _NOEXEC, "size=64k,nr_inodes=64,mode=755")
    for name, (fd, writable) in folders.items():
        place = f"{_PLACE}/{name}"
        os.mkdir(place)
        _mount(f"/proc/self/fd/{fd}", place, None, _BIND)
        _mount("none", place, None, _BIND | _REMOUNT | _NOSUID | _NODEV | _NOEXEC | (0 if writable else _RDONLY))
        os.close(fd)
    os.chdir(_PLACE)
    _call(_libc.syscall(machine.pivot_root, b".", b"."), "pivot_root")
    _call(_libc.umount2(b".", _DETACH), "umount2")
    os.chdir("/")
    _mount("none", "/", None, _REMOUNT | _RDONLY | _NOSUID | _NODEV | _NOEXEC)
    privileges.become_with(user, group, kept)
    start()  # each has from now on what this thread has, but the filter: that comes over all at once
    _refuse_calls(machine)


def _refuse_calls(machine: _Machine) -> None:
    """linux/filter.h: a list of instructions over struct seccomp_data (nr at 0, arch at 4)."""

    def instruction(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    refused = sorted(machine.refused.values())
    program = [
        instruction(load, 0, 0, 4),
        instruction(equal, 1, 0, machine.audit),
        instruction(give, 0, 0, _KILL),
        instruction(load, 0, 0, 0),
        instruction(at_least, len(refused) + 1, 0, _X32),
    ]
    program += [instruction(equal, len(refused) - index, 0, number) for index, number in enumerate(refused)]
    program += [instruction(give, 0, 0, _ALLOW), instruction(give, 0, 0, _REFUSE)]
    code = ctypes.create_string_buffer(b"".join(program))
    head = struct.pack("=H6xQ", len(program), ctypes.addressof(code))
    left = _libc.syscall(machine.seccomp, _SET_MODE_FILTER, _ALL_THREADS, ctypes.c_char_p(head))
    if left > 0:
        raise OSError(errno.EPERM, f"seccomp: thread {left} cannot be confined")
    _call(left, "seccomp")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [one.encode() if one is not None else None for one in (source, target, kind, data)]
    _call(_libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
