"""The kernel's log: whom it killed in a control group for memory. Nothing else tells the process."""

import errno
import os
import re

_LOG = "/dev/kmsg"
_RECORD = 8192
"""Longest record of the log, which is read one record a call."""


def killed(group: str) -> list[str]:
    """Names of the processes, oldest first; empty where the log cannot be read."""
    try:
        fd = os.open(_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    found = []
    try:
        while record := _next(fd):
            if name := victim(record, group):
                found.append(name)
    finally:
        os.close(fd)
    return found


def _next(fd: int) -> str:
    while True:
        try:
            return os.read(fd, _RECORD).decode(errors="replace")
        except OSError as error:
            if error.errno != errno.EPIPE:  # that means: older ones were overwritten meanwhile
                return ""


def victim(record: str, group: str) -> str | None:
    """`oom-kill:constraint=CONSTRAINT_MEMCG,...,task_memcg=/GROUP,task=python3,pid=29353,uid=1000` (kernel >= 4.19). A
    task's name may hold any character, so it is read from the end."""
    text = record.partition("\n")[0]
    found = re.search(r";oom-kill:.*?,task_memcg=/([^,]*),task=(.*),pid=\d+,uid=\d+$", text)
    if not found or not (found[1] == group or found[1].startswith(f"{group}/")):
        return None
    return "".join(c for c in found[2] if c.isprintable())[:32] or "?"
