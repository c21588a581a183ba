"""Network namespaces by threads: made, entered and dropped without any program.

A namespace belongs to a thread. Each of these moves a thread of its own and lets it end; the caller never moves.
"""

import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sandkeep.drivers.network.rtnetlink import Netlink

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_SHARED, _MNT_DETACH = 0x1000, 1 << 20, 2
_NS_GET_NSTYPE = 0xB703

_libc = ctypes.CDLL(None, use_errno=True)
_Result = TypeVar("_Result")

_SYSCTLS = (
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/lo/disable_ipv6", "0"),  # programs that find ::1 as localhost in /etc/hosts expect it
    ("ipv4/ip_forward", "0"),  # a new namespace inherits the host's 1
)


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _in_thread(function: Callable[[], _Result]) -> _Result:
    result: list[_Result] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def create(path: Path) -> Netlink:
    """A new namespace, kept by a bind mount at `path` and by nothing else; IPv6 is off but for ::1 and nothing is forwarded.
    Returns a socket that lives inside. Raises FileExistsError, OSError."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400))

    def body() -> Netlink:
        _check(_libc.unshare(_CLONE_NEWNET), "unshare")
        for key, value in _SYSCTLS:
            write_sysctl(key, value)
        here = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        _check(_libc.mount(here.encode(), os.fsencode(path), b"none", _MS_BIND, None), "bind mount")
        return Netlink()

    try:
        return _in_thread(body)
    except BaseException:
        os.unlink(path)
        raise


def inside(path: Path, function: Callable[[], _Result]) -> _Result:
    """Call `function` in the namespace at `path`; sockets that it returns stay there. Raises OSError."""

    def body() -> _Result:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(fd, _CLONE_NEWNET), "setns")
        finally:
            os.close(fd)
        return function()

    return _in_thread(body)


def is_namespace(path: Path) -> bool:
    """False also for the plain file that a crash between its creation and the mount leaves."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False
    finally:
        os.close(fd)


def drop(path: Path) -> None:
    """Unmount and remove; when nothing else holds the namespace, the kernel reaps it and its links within about 0.1 s
    in the background (deleting a link by hand would wait 16 to 32 ms). Nothing happens when it is gone already."""
    while is_namespace(path):  # mounted twice by two racing creators: both layers go
        _check(_libc.umount2(os.fsencode(path), _MNT_DETACH), "unmount")
    path.unlink(missing_ok=True)


def share_mounts(folder: Path) -> None:
    """Make the mounts below `folder` reach the mount namespaces that are split off later (a runtime that lives in one
    opens our namespaces by path). Where the host's root is shared already, as systemd has it, nothing is done."""
    if not _propagates(folder):
        _check(_libc.mount(os.fsencode(folder), os.fsencode(folder), b"none", _MS_BIND, None), "bind mount")
        _check(_libc.mount(b"none", os.fsencode(folder), b"none", _MS_SHARED, None), "share mount")


def unshare_mounts(folder: Path) -> None:
    """Undo `share_mounts`; nothing happens to a plain folder."""
    if _libc.umount2(os.fsencode(folder), _MNT_DETACH) and ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        _check(-1, "unmount")


def _propagates(folder: Path) -> bool:
    """Whether the mount that holds `folder` is shared: proc(5), mountinfo; the longest mount point above it wins."""
    wanted, best, shared = os.path.realpath(folder) + "/", "", False
    with open("/proc/self/mountinfo") as table:
        for line in table:
            fields = line.split(" ")
            point = fields[4].rstrip("/") + "/"
            if wanted.startswith(point) and len(point) >= len(best):
                best, shared = point, any(field.startswith("shared:") for field in fields[6 : fields.index("-")])
    return shared


def write_sysctl(key: str, value: str) -> None:
    """Of the calling thread's network namespace; a key that this kernel lacks (no IPv6) is left out."""
    try:
        fd = os.open(f"/proc/sys/net/{key}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def become_private() -> None:
    """Move the calling thread into a new, empty network namespace (threads that it starts later follow)."""
    _check(_libc.unshare(_CLONE_NEWNET), "unshare")
