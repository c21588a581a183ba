"""Files of a disk at a point in time on the wire, and what differs between two."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from sandkeep.wire.shape import Asked, Given, ShortText

FileType = Literal["file", "directory", "symlink", "other"]
ChangeKind = Literal["added", "changed", "removed"]


class FileFacts(Given):
    """`mode`: permission bits; `size` in bytes; owners by number. `target`: of a link, which may lead anywhere."""

    type: FileType
    size: int
    mode: int
    uid: int
    gid: int
    modified_at: datetime | None
    target: str | None = None


class FileView(FileFacts):
    """A file of a disk. `name_base64`: its bytes, of a name that is not UTF-8; `name` is then as it can be shown."""

    name: str
    name_base64: str | None = None


class FileChangeView(Given):
    """`path` from the root of the disk; `path_base64` as `name_base64` of FileView. `what` changed: type, content, mode, owner,
    time (alone), attributes."""

    path: str
    path_base64: str | None = None
    change: ChangeKind
    what: list[str]
    before: FileFacts | None
    after: FileFacts | None


class PackageChangeView(Given):
    """A version before and after; null where it is not installed. `place`: the folder that has it, of pip and npm."""

    manager: Literal["dpkg", "pip", "npm"]
    name: str
    place: str
    change: ChangeKind
    before: str | None
    after: str | None


class DiffCounts(Given):
    added: int
    changed: int
    removed: int


class DiffView(Given):
    """What differs. `counts` is of all files, `files` the first of them by path, `truncated` when there are more. `left_out`:
    folders too deep to be compared. `fast`: by the file system's own difference; else both disks were walked, and a file with its
    size and time as before counts as the same."""

    files: list[FileChangeView]
    packages: list[PackageChangeView]
    counts: DiffCounts
    truncated: bool
    left_out: list[str]
    fast: bool


class RestoreRequest(Asked):
    """`path` of the snapshot, by name or id, goes back to where it was, or to the path `to`, or into it when that ends with a
    slash. `no_resume`: do not wake the sandbox, 409 instead. `snapshot_first`: keep the moment before."""

    snapshot: ShortText
    path: ShortText
    to: ShortText | None = Field(None, min_length=1)
    no_resume: bool = False
    snapshot_first: bool = False


class RestoreView(Given):
    """What was put back, at `path`. `there_before`: something of this name was there; a file or link was replaced, a folder
    filled up. `skipped`: devices, FIFOs and sockets. `snapshot`: the id of the one that was made first."""

    path: str
    type: FileType
    there_before: bool
    files: int
    folders: int
    symlinks: int
    bytes: int
    skipped: int
    snapshot: str | None
