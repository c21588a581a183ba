"""Errors as RFC 9457 problem details: the one table from our errors to HTTP statuses."""

import json
import math
from typing import Any

from starlette.responses import Response

from sandkeep.domain.errors import SandkeepError

STATUSES: dict[str, tuple[int, str]] = {
    "invalid_argument": (400, "The request is not valid"),
    "unsupported": (400, "Not possible here"),
    "unauthenticated": (401, "A valid API key is needed"),
    "permission_denied": (403, "This key may not do that"),
    "not_found": (404, "Not found"),
    "conflict": (409, "Not possible as things are"),
    "already_exists": (409, "It exists already"),
    "busy": (409, "Another operation is under way"),
    "in_use": (409, "It is still in use"),
    "superseded": (409, "Overtaken by a newer operation"),
    "pause_failed": (409, "The pause failed; the sandbox runs on"),
    "too_large": (413, "Too large"),
    "quota_exceeded": (429, "Above your quota or rate"),
    "guest_error": (502, "The agent in the sandbox answered with an error"),
    "guest_unreachable": (502, "The agent in the sandbox does not answer"),
    "unavailable": (503, "Not available right now"),
    "storage_failed": (503, "The host's disk fails"),
    "deadline_exceeded": (504, "It took too long"),
    "no_capacity": (507, "The host lacks room for it"),
    "internal": (500, "An error of ours"),
}

_RESERVED = {"type", "title", "status", "detail", "code", "hint"}


def problem(error: SandkeepError) -> dict[str, Any]:
    status, title = STATUSES.get(error.code, STATUSES["internal"])
    extra = {key: value for key, value in error.details.items() if key not in _RESERVED}
    return {
        "type": f"urn:sandkeep:error:{error.code}",
        "title": title,
        "status": status,
        "detail": error.message,
        "code": error.code,
        "hint": error.hint,
        **extra,
    }


def problem_headers(error: SandkeepError) -> dict[str, str]:
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if error.code == "unauthenticated":
        headers["www-authenticate"] = "Bearer"
    return headers


def problem_response(error: SandkeepError) -> Response:
    body = problem(error)
    return Response(
        json.dumps(body, default=str),
        status_code=body["status"],
        media_type="application/problem+json",
        headers=problem_headers(error),
    )
