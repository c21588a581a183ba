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


def render() -> bytes:
    return generate_latest(_registry)
