"""The API document: what FastAPI derives from the routes, made true where it does not know our habits. Called by
scripts/reference.py and the tests.

The byte paths (files, tree, agent, export, import) and the terminal are bare ASGI and not in it: docs/reference/http.md has them.
"""

from typing import Any

from sandkeep.edge.api.app import api_app
from sandkeep.wire.platform import Problem

_SCHEMES = {"bearer": {"type": "http", "scheme": "bearer", "description": "An API key: sk_..."}}
_METHODS = frozenset({"get", "post", "put", "patch", "delete"})
_OTHERS = "Any other error; docs/reference/errors.md lists codes and statuses"


def api_document(version: str) -> dict[str, Any]:
    """OpenAPI 3.1 of the JSON routes."""
    document = api_app(None, version).openapi()
    document["info"]["description"] = (
        "Bodies and answers of the JSON routes. Errors are RFC 9457 problem details. Files, trees, export, import, "
        "the agent's own services and the terminal are described in docs/reference/http.md and agent/PROTOCOL.md."
    )
    document["security"] = [{"bearer": []}]
    components = document["components"]
    components["securitySchemes"] = _SCHEMES
    schemas = components["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method in _METHODS:
                _say_errors(path, operation)
    return document


def _say_errors(path: str, operation: dict[str, Any]) -> None:
    responses: dict[str, Any] = operation["responses"]
    # FastAPI's own answer to a body that does not fit; ours is 400 and a problem.
    if responses.pop("422", None):
        responses["400"] = _problem("The request is not valid")
    responses["401"] = _problem("A valid API key is needed")
    if "{" in path:
        responses["404"] = _problem("There is no such thing")
    responses["default"] = _problem(_OTHERS)


def _problem(description: str) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": description, "content": content}
