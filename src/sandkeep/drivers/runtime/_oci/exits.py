"""How a process ended, also one that is not our child."""

import asyncio
import contextlib
import fcntl
import os
import signal
import struct

_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3
_INFO = struct.Struct("=QQ11Ii")
"""struct pidfd_info of linux/pidfd.h: mask, cgroup id, eleven ids, wait status."""


async def wait(pid: int) -> int | None:
    """Returns when the process has ended (at once when there is none): its wait status, or None where the kernel
    (before 6.15, or while nobody has reaped it) does not tell."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        loop.add_reader(fd, ended.set)
        await ended.wait()
        return _status(fd)
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _status(fd: int) -> int | None:
    """Our own child that nobody reaped yet tells by waitid; somebody who was reaped, by his pidfd."""
    with contextlib.suppress(OSError):
        result = os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if result is not None:
            return result.si_status << 8 if result.si_code == os.CLD_EXITED else result.si_status
    buffer = bytearray(_INFO.pack(_PIDFD_INFO_EXIT, *([0] * 13)))
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, _PIDFD_GET_INFO, buffer)
        mask, *_, status = _INFO.unpack(buffer)
        if mask & _PIDFD_INFO_EXIT:
            return int(status)
    return None


def describe(status: int | None, oom_kills: int, panic: str = "", *, crowded: bool = False) -> str:
    """A sentence for people. oom_kills: how often the kernel killed somebody in it, which need not be how it ended.
    crowded: it had as many processes as its pids limit lets it have."""
    killed = status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
    if oom_kills and (killed or panic):
        return "ended: it was out of memory"
    if panic:
        return f"ended: the runtime failed: {panic.strip().splitlines()[0][:200]}"
    if crowded and not killed:
        return "ended: it had reached its pids limit"
    if status is None:
        return "ended"
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
