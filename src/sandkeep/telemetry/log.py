"""Logs: events with fields, from the list below. Never prose, never a secret.

structlog renders them as JSON lines on stderr; a program that has not called `set_up` stays silent below warnings.
"""

import logging
import sys
from typing import Any, Final

EVENTS: Final[dict[str, str]] = {
    "agent.removed": "No sandbox needs this agent any more; its folder was removed.",
    "build.kept": "A copy of the runtime that saved a memory image was put aside: only it restores the image.",
    "build.removed": "No memory image needs this build of a runtime any more; its copy was removed.",
    "clock.distrusted": "The wall clock was set ahead, or the server was frozen: lifetimes are not ended by it.",
    "daemon.started": "The server or the runner serves.",
    "daemon.stopping": "It was told to stop.",
    "database.found": "The database answers again.",
    "database.lost": "The database does not answer; calls get 503 until it does.",
    "deletions.unreadable": "The list of what was deleted was no file; it was set aside, and a new one begun.",
    "disk.quarantined": "The pool holds a disk that no record names; it is kept.",
    "expiry.failed": "A lifetime ended, and what its rule says could not be done; it is tried again ever more rarely.",
    "feed.damaged": "The node's news could not all be read; what is lost is news alone, server and node are compared.",
    "journal.torn": "A crash left a journal file whose first line is not whole: nothing was done under it.",
    "node.apart": "Server and node are not of one installation: what only one of them knows is left alone.",
    "node.paired": "From now on the node serves this control plane.",
    "machine.adopted": "After a restart, the runner took over a machine that lived on.",
    "machine.exited": "A machine ended by itself.",
    "machine.killed": "A machine that no record names was ended.",
    "machine.process_killed": "The kernel killed a process of a machine for want of memory.",
    "network.repaired": "Rules of ours were missing, and are back.",
    "operation.failed": "An operation on a sandbox failed and was undone.",
    "reconcile.acted": "The server followed what the node had observed.",
    "reconcile.failed": "A round of the reconciler failed; it is repeated.",
    "record.unreadable": "A record of the node cannot be read; what it describes is quarantined.",
    "recovery.done": "The runner has settled what a crash left.",
    "recovery.step": "An operation that a crash interrupted is finished or undone.",
    "request.failed": "The server failed in a request.",
    "restart.failed": "A planned restart of a sandbox failed; the next try comes later.",
    "resolver.exited": "The guests' resolver ended; it is started again.",
    "runner.connected": "The server reached the runner.",
    "runner.lost": "The server lost the runner; it tries again.",
    "server.refused": "A server and this runner have no version of their protocol in common.",
    "snapshot.lost": "The node has no record of a snapshot that the server lists; it is listed no more.",
    "task.failed": "A task in the background failed; it is repeated.",
    "timeline.failed": "What a timeline asks for could not be done; what is on a schedule is tried again ever more rarely.",
    "timeline.pruned": "Snapshots went that the timeline of their sandbox keeps no longer.",
    "archive.not_pruned": "Nothing went from the store, since it cannot be said what an archive needs; the reason is in `error`.",
    "undo.failed": "A step could not be undone; recovery and fsck find what is left.",
}
"""Name -> what it tells: the reference is made from this."""

_logger: Any = None


def set_up(level: str = "info") -> None:
    """Once per daemon. `level`: debug, info, warning, error."""
    global _logger
    import structlog

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    _logger = structlog.get_logger()


def log(event: str, /, level: str = "info", **fields: Any) -> None:
    """One event. `event` is from EVENTS."""
    if event not in EVENTS:
        raise ValueError(f"{event} is not in the list of log events")
    if _logger is not None:
        getattr(_logger, level)(event, **fields)
