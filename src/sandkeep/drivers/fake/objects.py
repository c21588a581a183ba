"""`Objects` for tests of logic: in memory. A test sets `away` to meet Unavailable, and reads and changes `held`."""

from sandkeep.domain.errors import NotFound, TooLarge, Unavailable


class FakeObjects:
    where = "memory"

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.away = False

    async def put(self, key: str, data: bytes) -> None:
        self._answer()
        self.held[key] = bytes(data)

    async def get(self, key: str, limit: int) -> bytes:
        self._answer()
        if key not in self.held:
            raise NotFound(f"there is no object {key}")
        if len(self.held[key]) > limit:
            raise TooLarge(f"the object {key} has more than {limit} bytes")
        return self.held[key]

    async def sizes(self, folder: str) -> dict[str, int]:
        self._answer()
        return {key: len(data) for key, data in self.held.items() if key.startswith(f"{folder}/")}

    async def delete(self, keys: list[str]) -> None:
        self._answer()
        for key in keys:
            self.held.pop(key, None)

    async def close(self) -> None:
        """Nothing is held."""

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("the object store does not answer", retry_after=1, part="store")
