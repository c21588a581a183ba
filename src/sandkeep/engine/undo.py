"""Every step on the host pushes its undo; on failure they run once, backwards, shielded from cancellation."""

from collections.abc import Awaitable, Callable
from types import TracebackType

import anyio

from sandkeep.telemetry.log import log

Undo = Callable[[], Awaitable[object]]


class Undos:
    """`async with Undos() as undos: ...; undos.push("disk", lambda: disks.delete(id))`. Leaving by an exception undoes
    all that was pushed; leaving normally forgets it. An undo that fails is logged and the others still run: recovery
    and fsck find what is left."""

    def __init__(self) -> None:
        self._stack: list[tuple[str, Undo]] = []

    def push(self, what: str, undo: Undo) -> None:
        self._stack.append((what, undo))

    async def __aenter__(self) -> "Undos":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        with anyio.CancelScope(shield=True):
            while self._stack:
                what, undo = self._stack.pop()
                try:
                    with anyio.fail_after(30):
                        await undo()
                except Exception as failure:
                    log("undo.failed", what=what, error=repr(failure))
