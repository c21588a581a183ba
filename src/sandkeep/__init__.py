"""Sandkeep: persistent sandboxes. The package root is the SDK's front door and imports lazily."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "AsyncClient": "sandkeep.sdk",
    "AsyncSandbox": "sandkeep.sdk",
    "Client": "sandkeep.sdk",
    "Sandbox": "sandkeep.sdk",
    "SandkeepError": "sandkeep.sdk.errors",
}
__all__ = ["AsyncClient", "AsyncSandbox", "Client", "Sandbox", "SandkeepError", "__version__"]

if TYPE_CHECKING:
    from sandkeep.sdk import AsyncClient, AsyncSandbox, Client, Sandbox
    from sandkeep.sdk.errors import SandkeepError


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sandkeep' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
