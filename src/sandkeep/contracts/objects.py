"""Objects: what the engine may ask of cheap storage: whole byte strings under keys.

A key is made by the engine: words of [a-z0-9_.-] joined by `/`. What is read back is whoever holds the store's to change:
nobody believes it before it was checked.
"""

from typing import Protocol


class Objects(Protocol):
    """Guarantees:

    * When `put` returns, the object is whole and durable, and `get` gives it; a `put` that was interrupted leaves the old
      object or none. Putting again replaces.
    * Deleting what is gone is no error.
    * Raises Unavailable when the store does not answer, PermissionDenied when it refuses us, NotFound for an unknown key,
      NoCapacity or StorageFailed when it takes nothing more.
    """

    where: str
    """For people, without secrets."""

    async def put(self, key: str, data: bytes) -> None: ...

    async def get(self, key: str, limit: int) -> bytes:
        """Raises TooLarge, without having read it, for an object above `limit` bytes."""
        ...

    async def sizes(self, folder: str) -> dict[str, int]:
        """Key -> bytes, of all objects below `folder` whose keys are such as we make."""
        ...

    async def delete(self, keys: list[str]) -> None: ...

    async def close(self) -> None: ...
