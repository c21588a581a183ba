"""Images: where a root file system comes from."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class RootBuilder(Protocol):
    """Fills an empty folder with a root file system from the distribution's packages. Runs on the host, as root: only
    for our own recipes, never for what a tenant gives."""

    def recipes(self) -> tuple[str, ...]: ...

    async def build(self, recipe: str, folder: Path, progress: Callable[[str], None]) -> None:
        """Raises Unavailable when packages cannot be had, Internal when the build fails (with the log's end)."""
        ...
