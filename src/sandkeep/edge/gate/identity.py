"""Who is it: the bearer key of a request or WebSocket handshake."""

from starlette.requests import HTTPConnection

from sandkeep.control.keys import Keys
from sandkeep.domain.errors import Unauthenticated
from sandkeep.domain.principal import Principal


async def principal_of(connection: HTTPConnection, keys: Keys) -> Principal:
    """Raises Unauthenticated."""
    scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise Unauthenticated(
            "this needs an API key",
            hint="send Authorization: Bearer sk_...; `sandkeep up` writes yours into the CLI's file",
        )
    return await keys.prove(secret.strip())
