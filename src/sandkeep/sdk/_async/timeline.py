"""The timeline of a sandbox: when snapshots of it are made by rule, and which of them stay."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sandkeep.sdk._async.transport import AsyncTransport
from sandkeep.sdk.requests import shaped

if TYPE_CHECKING:
    from sandkeep.wire.snapshots import SnapshotKind
    from sandkeep.wire.timeline import PruneView, TimelineView

Duration = float | str
Size = int | str
_UNCHANGED: Any = object()


class AsyncTimeline:
    """`sandbox.timeline`."""

    def __init__(self, transport: AsyncTransport, sandbox_id: str) -> None:
        self._transport = transport
        self._path = f"/v1/sandboxes/{sandbox_id}/timeline"

    async def show(self) -> "TimelineView":
        view: TimelineView = shaped("timeline.TimelineView", await self._transport.call("GET", self._path, again=True))
        return view

    async def set(
        self,
        *,
        every: Duration | None = _UNCHANGED,
        kind: "SnapshotKind" = _UNCHANGED,
        on_exit: bool = _UNCHANGED,
        on_out_of_memory: bool = _UNCHANGED,
        on_crash: bool = _UNCHANGED,
        keep_last: int = _UNCHANGED,
        keep_hourly: int = _UNCHANGED,
        keep_daily: int = _UNCHANGED,
        keep_weekly: int = _UNCHANGED,
        keep_monthly: int = _UNCHANGED,
        keep_tags: Sequence[str] = _UNCHANGED,
        min_age: Duration = _UNCHANGED,
        budget: Size | None = _UNCHANGED,
        asked_too: bool = _UNCHANGED,
    ) -> "TimelineView":
        """Change what is given; the rest stays. `every` None ends the schedule, `budget` None the budget.

        `every`: a snapshot so long after the last one, if anything changed. `on_...`: one when somebody stops its machine, when
        memory ran out, when its machine ended by itself. `keep_...`: how many of the automatic ones stay, by each rule; without
        any, and without a `budget` (bytes that its snapshots may hold), nothing goes. Nothing goes that is younger than
        `min_age`, has a name, or one of `keep_tags`. `asked_too`: those that somebody asked for, too, unless they have a name.
        Raises InvalidArgument.
        """
        asked = {
            "every": every,
            "kind": kind,
            "on_exit": on_exit,
            "on_out_of_memory": on_out_of_memory,
            "on_crash": on_crash,
            "keep_last": keep_last,
            "keep_hourly": keep_hourly,
            "keep_daily": keep_daily,
            "keep_weekly": keep_weekly,
            "keep_monthly": keep_monthly,
            "keep_tags": keep_tags if keep_tags is _UNCHANGED else list(keep_tags),
            "min_age": min_age,
            "budget": budget,
            "asked_too": asked_too,
        }
        before = await self._transport.call("GET", self._path, again=True)
        body = {name: before[name] if value is _UNCHANGED else value for name, value in asked.items()}
        view: TimelineView = shaped(
            "timeline.TimelineView", await self._transport.call("PUT", self._path, body=body, again=True)
        )
        return view

    async def off(self) -> "TimelineView":
        """No snapshot is made, and none goes, by rule. Those that are there stay."""
        view: TimelineView = shaped(
            "timeline.TimelineView", await self._transport.call("PUT", self._path, body={}, again=True)
        )
        return view

    async def prune(self, *, plan: bool = False) -> "PruneView":
        """Let go now of what its rules keep no longer, as would happen by itself; with `plan` only say what that is."""
        answer = await self._transport.call("POST", self._path + "/prune", body={"plan": plan}, again=True)
        view: PruneView = shaped("timeline.PruneView", answer)
        return view
