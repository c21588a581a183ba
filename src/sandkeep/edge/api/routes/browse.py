"""Disks at points in time: folders and files without a machine, what differs, and files put back. Bytes go by bare ASGI.

Names are any bytes. So a path is taken from the query as it was sent, percent-encoded, and not as text.
"""

import base64
import binascii
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Query, Request
from starlette.requests import HTTPConnection
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sandkeep.domain.browse import Difference, FileAt, FileChange, PackageChange, name_of, raw
from sandkeep.domain.errors import InvalidArgument, SandkeepError
from sandkeep.edge.api import shapes
from sandkeep.edge.api.services import Caller, Services, Using
from sandkeep.edge.gate.passage import GUARDS
from sandkeep.edge.gate.problems import problem_response
from sandkeep.lib.together import together
from sandkeep.wire import browse as wire
from sandkeep.wire.shape import Page, ShortText

router = APIRouter(prefix="/v1", tags=["snapshots"])
_MOST_FIELDS = 200

Snapshot = Annotated[ShortText | None, Query(description="name or id; without one, the disk as it is now")]
Path = Annotated[str, Query(description="from the root of the disk; percent-encoded bytes, UTF-8 or not")]


def asked(scope: Scope) -> list[tuple[str, str]]:
    """The query; its values are `raw`. Raises InvalidArgument."""
    try:
        query = scope.get("query_string", b"").decode("latin-1")
        return parse_qsl(query, keep_blank_values=True, encoding="latin-1", max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise InvalidArgument("the query has too many fields") from error


async def raw_path(request: Request) -> str:
    return dict(asked(request.scope)).get("path", "/")


RawPath = Annotated[str, Depends(raw_path)]


@router.get("/sandboxes/{ref}/browse/list")
async def browse_folder(
    ref: str,
    who: Caller,
    use: Using,
    exact: RawPath,
    snapshot: Snapshot = None,
    path: Path = "/",
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    cursor: str | None = None,
) -> Page[wire.FileView]:
    """What is in a folder, by name. Nothing is started, and no link leads out of the disk."""
    point = await use.browse.point(who.project_id, ref, snapshot)
    found = await use.browse.list_folder(point, exact, _after(cursor), limit)
    next_cursor = _cursor(found[-1].name) if len(found) == limit else None
    return Page(items=[file_view(one) for one in found], next_cursor=next_cursor)


@router.get("/sandboxes/{ref}/browse/stat")
async def browse_file(
    ref: str,
    who: Caller,
    use: Using,
    exact: RawPath,
    snapshot: Snapshot = None,
    path: Path = "/",
    follow: bool = False,
) -> wire.FileView:
    """One file; `follow`: what a link leads to."""
    point = await use.browse.point(who.project_id, ref, snapshot)
    return file_view(await use.browse.stat(point, exact, follow=follow))


@router.get("/diff")
async def diff(
    who: Caller,
    use: Using,
    before: ShortText,
    after: ShortText,
    limit: Annotated[int, Query(ge=0, le=100_000)] = 10_000,
) -> wire.DiffView:
    """What differs between two points in time, each NAME@SNAPSHOT, a snapshot's id, or NAME as it is now."""
    return diff_view(await use.browse.diff(who.project_id, before, after, limit))


@router.post("/sandboxes/{ref}/restore")
async def restore_files(ref: str, body: wire.RestoreRequest, who: Caller, use: Using) -> wire.RestoreView:
    """A file, a link or a folder of a snapshot, with owners, modes and times, back into the sandbox, through its agent."""
    done = await use.browse.restore(
        who.project_id,
        ref,
        body.snapshot,
        raw(body.path.encode()),
        None if body.to is None else raw(body.to.encode()),
        wake=not body.no_resume,
        keep_before=body.snapshot_first,
    )
    return wire.RestoreView(
        path=_shown(done.path),
        type=done.type.value,
        there_before=done.there_before,
        files=done.files,
        folders=done.folders,
        symlinks=done.symlinks,
        bytes=done.bytes,
        skipped=done.skipped,
        snapshot=done.snapshot,
    )


# bytes


class _Reading:
    """An ASGI endpoint: a file, or a tree as tar. Breaks off when what is read is deleted meanwhile."""

    def __init__(self, services: Services, *, tree: bool) -> None:
        self._services = services
        self._tree = tree

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            who = await self._services.identity.principal(HTTPConnection(scope))
            fields = asked(scope)
            given = dict(fields)
            browse = self._services.browse
            snapshot = given.get("snapshot", "")
            point = await browse.point(who.project_id, scope["path_params"]["ref"], snapshot or None)
            path = given.get("path", "")
            if self._tree:
                exclude = tuple(name_of(value).decode(errors="replace") for name, value in fields if name == "exclude")
                chunks = browse.read_tree(point, path, exclude)
            else:
                chunks = browse.read_file(point, path)
            await _send_all(chunks, b"application/x-tar" if self._tree else b"application/octet-stream", receive, send)
        except _BrokenError as error:
            raise ConnectionAbortedError("the stream broke after it had begun") from error
        except SandkeepError as error:
            await problem_response(error)(scope, receive, send)


class _BrokenError(Exception):
    pass


async def _send_all(chunks: AsyncGenerator[bytes, None], kind: bytes, receive: Receive, send: Send) -> None:
    """Raises SandkeepError before anything was sent, _BrokenError afterwards."""
    begun = False
    async with together() as tasks:

        async def watch_client() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        async def begin() -> None:
            nonlocal begun
            if not begun:
                begun = True
                await send(
                    {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind), *GUARDS]}
                )

        tasks.start_soon(watch_client)
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    await begin()
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await begin()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except SandkeepError as error:
            if begun:
                raise _BrokenError from error
            raise
        finally:
            tasks.cancel_scope.cancel()


def browse_routes(services: Services) -> list[Route]:
    prefix = "/v1/sandboxes/{ref}/browse"
    return [
        Route(f"{prefix}/files", _Reading(services, tree=False), methods=["GET"]),
        Route(f"{prefix}/tree", _Reading(services, tree=True), methods=["GET"]),
    ]


# between the wire and our words


def file_view(found: FileAt) -> wire.FileView:
    facts = _facts(found)
    return wire.FileView(**facts.model_dump(), name=_shown(found.name), name_base64=_exact(found.name))


def diff_view(found: Difference) -> wire.DiffView:
    return wire.DiffView(
        files=[_file_change(change) for change in found.files],
        packages=[_package_change(change) for change in found.packages],
        counts=wire.DiffCounts(**{kind.value: count for kind, count in found.counts.items()}),
        truncated=found.truncated,
        left_out=[_shown(path) for path in found.left_out],
        fast=found.fast,
    )


def _file_change(change: FileChange) -> wire.FileChangeView:
    path = "/" + change.path
    return wire.FileChangeView(
        path=_shown(path),
        path_base64=_exact(path),
        change=change.change.value,
        what=[aspect.value for aspect in change.what],
        before=None if change.before is None else _facts(change.before),
        after=None if change.after is None else _facts(change.after),
    )


def _package_change(change: PackageChange) -> wire.PackageChangeView:
    return wire.PackageChangeView.model_validate(
        {
            "manager": change.manager,
            "name": change.name,
            "place": _shown("/" + change.place) if change.place else "",
            "change": change.change.value,
            "before": change.before,
            "after": change.after,
        }
    )


def _facts(found: FileAt) -> wire.FileFacts:
    try:
        modified_at = shapes.moment(found.modified_at)
    except (OverflowError, ValueError, OSError):  # a guest may set any
        modified_at = None
    return wire.FileFacts(
        type=found.type.value,
        size=found.size,
        mode=found.mode,
        uid=found.uid,
        gid=found.gid,
        modified_at=modified_at,
        target=None if found.target is None else _shown(found.target),
    )


def _shown(text: str) -> str:
    return name_of(text).decode("utf-8", "replace")


def _exact(text: str) -> str | None:
    name = name_of(text)
    try:
        name.decode()
    except UnicodeDecodeError:
        return base64.b64encode(name).decode()
    return None


def _cursor(name: str) -> str:
    return base64.urlsafe_b64encode(name_of(name)).decode()


def _after(cursor: str | None) -> str:
    try:
        return raw(base64.b64decode((cursor or "").encode("ascii"), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(
            "the cursor is none", hint="use next_cursor of the page before", field="cursor"
        ) from error
