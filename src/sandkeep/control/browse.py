"""Disks at points in time: looked at without starting anything, compared, and put back file by file."""

import base64
import json
import posixpath
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import quote

import anyio

from sandkeep.contracts.guest import Guest, HttpAnswer
from sandkeep.contracts.runner import Runner
from sandkeep.control.changes import refuse_deleted
from sandkeep.control.endpoints import Reached
from sandkeep.control.events import Events
from sandkeep.control.reach import Reach
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.control.snapshots import Snapshots
from sandkeep.domain.browse import Difference, FileAt, FileType, Point, name_of
from sandkeep.domain.errors import (
    DeadlineExceeded,
    GuestError,
    GuestUnreachable,
    InvalidArgument,
    NoCapacity,
    NotFound,
)
from sandkeep.domain.event import EventKind
from sandkeep.domain.ids import IdKind, is_id
from sandkeep.store import snapshots as snapshot_store

_RESTORE_DEADLINE = 3600.0
_ANSWER_LIMIT = 1 << 20


@dataclass(frozen=True)
class Restored:
    """What was put back, and where (`path`, raw). there_before: something of this name was there, and was replaced or, a
    folder into a folder, filled up. snapshot: the id of the one that was made first."""

    path: str
    type: FileType
    there_before: bool
    files: int
    folders: int
    symlinks: int
    bytes: int
    skipped: int
    snapshot: str | None = None


class Browse:
    """Paths are `raw` (domain/browse), from the root of the disk."""

    def __init__(
        self, events: Events, sandboxes: Sandboxes, snapshots: Snapshots, reach: Reach, runner: Runner, guest: Guest
    ) -> None:
        self._events = events
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._reach = reach
        self._runner = runner
        self._guest = guest

    async def point(self, project_id: str, reference: str, snapshot: str | None) -> Point:
        """`snapshot`: name or id; None: as it is now. Raises NotFound, Busy."""
        if snapshot:
            found = await self._snapshots.get(project_id, reference, snapshot)
            return Point(found.sandbox_id, found.id)
        sandbox = await self._sandboxes.get(project_id, reference)
        refuse_deleted(sandbox)
        return Point(sandbox.id)

    async def operand(self, project_id: str, text: str) -> Point:
        """NAME@SNAPSHOT, a snapshot's id, or NAME as it is now."""
        if is_id(text, IdKind.SNAPSHOT):
            async with self._events.change() as ledger:
                found = await snapshot_store.by_id(ledger.transaction, text)
            if found is None or found.project_id != project_id:
                raise NotFound(
                    f"there is no snapshot {text}", hint="sandkeep snapshot list NAME shows those of a sandbox"
                )
            return await self.point(project_id, found.sandbox_id, found.id)
        name, at, snapshot = text.partition("@")
        if not name or (at and not snapshot):
            raise InvalidArgument(
                f"{text[:80]!r} is no point in time", hint="write NAME@SNAPSHOT, a snapshot's id, or NAME as it is now"
            )
        return await self.point(project_id, name, snapshot or None)

    # -- looking

    async def list_folder(self, point: Point, path: str, after: str, limit: int) -> list[FileAt]:
        return await self._runner.list_folder(point, _absolute(path), after, limit)

    async def stat(self, point: Point, path: str, *, follow: bool) -> FileAt:
        return await self._runner.stat_path(point, _absolute(path), follow)

    def read_file(self, point: Point, path: str) -> AsyncGenerator[bytes, None]:
        return self._runner.read_file(point, _absolute(path))

    def read_tree(self, point: Point, path: str, exclude: tuple[str, ...]) -> AsyncGenerator[bytes, None]:
        """Names in it are relative to the folder; a file alone has its own."""
        return self._runner.read_tree(point, _absolute(path), ".", True, exclude)

    async def diff(self, project_id: str, before: str, after: str, limit: int) -> Difference:
        points = [await self.operand(project_id, text) for text in (before, after)]
        return await self._runner.diff(points[0], points[1], limit)

    # -- putting back

    async def restore(
        self,
        project_id: str,
        reference: str,
        snapshot: str,
        path: str,
        to: str | None,
        *,
        wake: bool,
        keep_before: bool,
    ) -> Restored:
        """A file or link of the snapshot replaces what has its name now; a folder is filled up with its files. `to`: another
        place, or, with a slash at the end, a folder to put it in."""
        point = await self.point(project_id, reference, snapshot)
        found = await self._runner.stat_path(point, _absolute(path), False)
        if found.type is FileType.OTHER:
            raise InvalidArgument(
                "it is a device, a FIFO or a socket", hint="only files, links and folders are put back"
            )
        goal = _goal(path, to)
        kept = None
        if keep_before:
            kept = (await self._snapshots.create(project_id, point.sandbox_id, reason="before a restore of files")).id
        reached = await self._reach.agent(project_id, point.sandbox_id, wake=wake)
        try:
            there = await self._is_there(reached, goal)
        except GuestUnreachable:
            await self._reach.lost(reached)
            reached = await self._reach.agent(project_id, point.sandbox_id, wake=wake)
            there = await self._is_there(reached, goal)
        async with self._reach.attended(project_id, reached):
            counts = await self._put(reached, point, path, goal)
        async with self._events.change() as ledger:
            shown = name_of(goal).decode("utf-8", "replace")[:200]
            await ledger.tell(
                EventKind.SANDBOX_FILES_RESTORED,
                project_id,
                point.sandbox_id,
                f"{shown} is as it was at {snapshot}",
                snapshot=point.snapshot_id,
                path=shown,
            )
        return Restored(goal, found.type, there, **counts, snapshot=kept)

    async def _put(self, reached: Reached, point: Point, path: str, goal: str) -> dict[str, int]:
        folder, name = posixpath.split(goal)
        target = f"/tree?username=root&owners=true&path={quote(name_of(folder), safe='/')}"
        tree = self._runner.read_tree(point, path, name, False, ())
        headers = [(b"content-type", b"application/x-tar")]
        try:
            with anyio.fail_after(_RESTORE_DEADLINE):
                async with (
                    aclosing(tree),
                    self._guest.request(reached.endpoint, "PUT", target, headers, tree) as answer,
                ):
                    told = await _json(answer)
        except TimeoutError as error:
            raise DeadlineExceeded(f"the restore took longer than {_RESTORE_DEADLINE:g} s") from error
        names = {"files": "files", "folders": "dirs", "symlinks": "symlinks", "bytes": "bytes", "skipped": "skipped"}
        return {ours: _count(told.get(theirs)) for ours, theirs in names.items()}

    async def _is_there(self, reached: Reached, goal: str) -> bool:
        """Whether something is there now."""
        try:
            message = json.dumps({"path": name_of(goal).decode()}).encode()
        except UnicodeDecodeError:  # JSON cannot say it; it is replaced all the same
            return False
        headers = [
            (b"content-type", b"application/json"),
            (b"authorization", b"Basic " + base64.b64encode(b"root:")),
        ]
        target = "/filesystem.Filesystem/Stat"
        async with self._guest.request(reached.endpoint, "POST", target, headers, message) as answer:
            try:
                await _json(answer)
            except NotFound:
                return False
        return True


def _absolute(path: str) -> str:
    """Raises InvalidArgument."""
    if not path.startswith("/"):
        raise InvalidArgument("a path in a snapshot begins with a slash", field="path")
    if "\0" in path:
        raise InvalidArgument("a path has no NUL", field="path")
    return path


def _goal(path: str, to: str | None) -> str:
    """Where it goes. Raises InvalidArgument."""
    goal = _absolute(to) if to else _absolute(path)
    if to and to.endswith("/"):
        goal = posixpath.join(goal, posixpath.basename(posixpath.normpath(path)))
    goal = "/" + posixpath.normpath(goal).lstrip("/")
    if goal == "/":
        raise InvalidArgument(
            "the whole disk is not put back file by file",
            hint="sandkeep rollback goes back to a snapshot; to put all of it into a folder, name one",
            field="to" if to else "path",
        )
    return goal


def _count(told: object) -> int:
    if not isinstance(told, int) or not 0 <= told < 1 << 63:
        raise GuestError("the agent's answer is not one")
    return told


async def _json(answer: HttpAnswer) -> dict[str, object]:
    """Of an agent, in words of ours when it is an error."""
    data = bytearray()
    async for chunk in answer.body:
        data += chunk
        if len(data) > _ANSWER_LIMIT:
            raise GuestError("the agent's answer is too long")
    try:
        told = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise GuestError("the agent's answer is not JSON") from error
    if not isinstance(told, dict):
        raise GuestError("the agent's answer is not an object")
    if answer.status < 300:
        return told
    message = str(told.get("message", f"status {answer.status}"))[:1000]
    if answer.status == 404:
        raise NotFound(message)
    if answer.status == 507:
        raise NoCapacity(
            f"the disk of the sandbox is full: {message}", hint="delete files in it, or give it a larger disk"
        )
    if answer.status == 400:
        raise InvalidArgument(
            message, hint="what is in the way there, is it of another kind? delete it first, or name another place"
        )
    raise GuestError(message)
