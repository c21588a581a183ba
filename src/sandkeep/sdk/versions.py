"""Whether this SDK and a server fit together."""

from collections.abc import Mapping
from typing import Any

from sandkeep.sdk.errors import VersionMismatch

# The version of the HTTP interface that this SDK speaks; wire/platform.py says the same, a test compares them.
API_VERSION = 1


def client_version() -> str:
    import sandkeep

    return sandkeep.__version__


def check_version(told: Any, mine: str | None = None) -> str | None:
    """A warning when the server is another release than this client, or None. `told`: a VersionView.

    Raises VersionMismatch when they cannot work together.
    """
    mine = mine or client_version()
    if not isinstance(told, Mapping) or not isinstance(told.get("api"), int):
        raise VersionMismatch("the server does not say its version", hint="is SANDKEEP_URL a Sandkeep server?")
    server, api = str(told.get("version")), told["api"]
    oldest = str(told.get("oldest_client") or "0")
    if _numbers(mine) < _numbers(oldest):
        raise VersionMismatch(
            f"this client is {mine}, the server {server} needs {oldest} or newer",
            hint=f"upgrade the client: pip install 'sandkeep>={oldest}'",
        )
    if api != API_VERSION:
        which = "older" if api < API_VERSION else "newer"
        raise VersionMismatch(
            f"the server {server} speaks interface version {api}, {which} than this client's {API_VERSION}",
            hint=f"install the client of the server's release: pip install 'sandkeep=={server}'",
        )
    if _numbers(server)[:2] < _numbers(mine)[:2]:
        return f"this client is {mine}, the server is older: {server}; what is new in {mine} will not work"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
