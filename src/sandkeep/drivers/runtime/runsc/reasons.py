"""Why gVisor cannot save a sandbox's memory, in sentences for people."""

import os
from pathlib import Path

_CONNECTING = "resetConnectionLocked"
"""Where a save ends that meets a connection of which only the first packet was sent: in 20240729 by a nil pointer."""
_KNOWN = (
    (
        "deleted and invalidated dentries",
        "a process holds a file on the disk open that was deleted",
        "end that process, or let it keep its temporary files in /tmp",
    ),
    ("external networking connection", "a process has a connection that cannot be closed", None),
    ("bound host socket", "a process uses a socket of the host", None),
    (_CONNECTING, "a process waits for a connection to be answered", "pause again when that has ended"),
    ("endpoint", "a process has a connection of a kind that cannot be saved", None),
)


_ROOT = "/root"
"""Where gVisor's kernel, in a root of its own, has the guest's."""


def explain(error: str) -> tuple[str, str | None]:
    """(sentence, hint) for what a failed checkpoint says; unknown texts are passed on, shortened."""
    for part, sentence, hint in _KNOWN:
        if part in error:
            return sentence, hint
    return (
        f"gVisor cannot save the memory: {error.strip().splitlines()[0][:300] if error.strip() else 'no reason'}",
        None,
    )


def connecting(error: str) -> bool:
    return _CONNECTING in error


def deleted_files(sentry: int) -> list[str]:
    """Paths inside of deleted files that processes there hold open: gVisor's kernel has each as a descriptor of its own
    (seen in 15 of 15 such failures, no false alarm in 105). Empty when the process is gone. The guest chose the names:
    what cannot be printed is left out."""
    found = set()
    folder = Path(f"/proc/{sentry}/fd")
    try:
        for entry in os.scandir(folder):
            try:
                target = os.readlink(entry.path)
            except OSError:
                continue
            if target.endswith(" (deleted)") and not target.startswith(("/memfd:", "/dev/shm/", "/dev/zero")):  # noqa: S108
                path = target.removesuffix(" (deleted)").removeprefix(_ROOT)
                found.add("".join(letter for letter in path[:200] if letter.isprintable()))
    except OSError:
        return []
    return sorted(found)
