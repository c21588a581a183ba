"""The byte paths: the agent's services, files and trees, passed through by bare ASGI; what is read out of a disk beside them."""

from starlette.requests import HTTPConnection
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sandkeep.domain.errors import NotFound, SandkeepError
from sandkeep.edge.api.routes.browse import browse_routes
from sandkeep.edge.api.routes.portable import portable_routes
from sandkeep.edge.api.services import Services
from sandkeep.edge.gate.passage import pass_through
from sandkeep.edge.gate.problems import problem_response

_SERVICES = frozenset({"process.Process", "filesystem.Filesystem"})
_PLAIN = frozenset({"health", "metrics", "envs", "events"})


class _Passage:
    """An ASGI endpoint; `where` makes the agent's path from the route's parameters."""

    def __init__(self, services: Services, kind: str) -> None:
        self._services = services
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parameters = scope["path_params"]
        try:
            who = await self._services.identity.principal(HTTPConnection(scope))
            await pass_through(
                scope,
                receive,
                send,
                reach=self._services.reach,
                guest=self._services.guest,
                project_id=who.project_id,
                reference=parameters["ref"],
                path=_target(self._kind, parameters),
            )
        except SandkeepError as error:
            if error.details.pop("answered", False):
                raise ConnectionAbortedError("the stream broke after it had begun") from error
            await problem_response(error)(scope, receive, send)


def _target(kind: str, parameters: dict[str, str]) -> str:
    if kind != "agent":
        return f"/{kind}"
    service, method = parameters["service"], parameters.get("method", "")
    if service in _SERVICES and method.isalnum():
        return f"/{service}/{method}"
    if service in _PLAIN and not method:
        return f"/{service}"
    raise NotFound("the agent has no such service", hint="see agent/PROTOCOL.md")


def byte_routes(services: Services) -> list[Route]:
    prefix = "/v1/sandboxes/{ref}"
    return [
        Route(f"{prefix}/files", _Passage(services, "files"), methods=["GET", "HEAD", "POST"]),
        Route(f"{prefix}/files/compose", _Passage(services, "files/compose"), methods=["POST"]),
        Route(f"{prefix}/tree", _Passage(services, "tree"), methods=["GET", "PUT"]),
        Route(f"{prefix}/agent/{{service}}/{{method}}", _Passage(services, "agent"), methods=["POST"]),
        Route(f"{prefix}/agent/{{service}}", _Passage(services, "agent"), methods=["GET"]),
        *browse_routes(services),
        *portable_routes(services),
    ]
