"""Logs: events with fields, from the list below. Never prose, never a secret.

structlog renders them as JSON lines on stderr; a program that has not called `set_up` stays silent below warnings.
"""

import logging
import sys
from typing import Any, Final

EVENTS: Final = frozenset(
    {
        "daemon.started",
        "daemon.stopping",
        "machine.adopted",
        "machine.exited",
        "machine.killed",
        "disk.quarantined",
        "network.repaired",
        "operation.done",
        "operation.failed",
        "record.unreadable",
        "journal.torn",
        "recovery.done",
        "recovery.step",
        "undo.failed",
        "reconcile.failed",
        "reconcile.acted",
        "request.failed",
        "request.served",
        "resolver.started",
        "resolver.exited",
        "runner.connected",
        "runner.lost",
        "template.imported",
        "task.failed",
    }
)

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
