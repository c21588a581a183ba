"""Metrics: every name lives here. Labels are bounded: no ids."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_registry = CollectorRegistry()

REQUESTS = Counter("sandkeep_http_requests_total", "HTTP requests", ["route", "method", "status"], registry=_registry)
REQUEST_SECONDS = Histogram(
    "sandkeep_http_request_seconds",
    "Time to the end of an HTTP answer",
    ["route", "method"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15, 60),
    registry=_registry,
)

REHEARSALS = Counter(
    "sandkeep_archive_rehearsals_total",
    "Archives that were restored into a scratch place and compared, by what was found",
    ["result"],
    registry=_registry,
)


def render() -> bytes:
    return generate_latest(_registry)


def described() -> list[tuple[str, str, tuple[str, ...], str]]:
    """(name, type, labels, what it is) of every metric, for the reference."""
    found = []
    for metric in (REQUESTS, REQUEST_SECONDS, REHEARSALS):
        for family in metric.describe():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found.append((name, family.type, tuple(metric._labelnames), family.documentation))
    return found
