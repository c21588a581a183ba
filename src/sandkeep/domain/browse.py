"""Looking at a disk from outside: a point in time of it, the files there, and what differs between two."""

from dataclasses import dataclass, field
from enum import StrEnum

from sandkeep.domain.errors import InvalidArgument


@dataclass(frozen=True)
class Point:
    """A sandbox's disk at one of its snapshots, or as it is now."""

    sandbox_id: str
    snapshot_id: str | None = None


def raw(name: bytes) -> str:
    """The bytes of a file's name, or of a path, as text that every format carries: each byte is one letter. Names are any
    bytes; whoever shows them to people takes them for UTF-8 where they are."""
    return name.decode("latin-1")


def name_of(text: str) -> bytes:
    """What `raw` was given. Raises InvalidArgument for what is none of its."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise InvalidArgument("a path is given by its bytes, each as one letter", field="path") from error


class FileType(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


@dataclass(frozen=True)
class FileAt:
    """A file at a point; `name` and `target` are `raw`. mode: permission bits; modified_at: seconds since the epoch; target:
    of a link."""

    name: str
    type: FileType
    size: int
    mode: int
    uid: int
    gid: int
    modified_at: float
    target: str | None = None


class ChangeKind(StrEnum):
    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


class Aspect(StrEnum):
    """What of a file changed. TIME: its time alone; ATTRIBUTES: its extended attributes."""

    TYPE = "type"
    CONTENT = "content"
    MODE = "mode"
    OWNER = "owner"
    TIME = "time"
    ATTRIBUTES = "attributes"


@dataclass(frozen=True)
class FileChange:
    """`path` is `raw`, from the root, without a slash in front. before, after: None where it is not there."""

    path: str
    change: ChangeKind
    before: FileAt | None
    after: FileAt | None
    what: tuple[Aspect, ...] = ()


@dataclass(frozen=True)
class PackageChange:
    """manager: dpkg, pip or npm; place: the folder that it is installed in, `raw` ('' for dpkg, which has one). before, after:
    the version, None where it is not installed."""

    manager: str
    name: str
    place: str
    change: ChangeKind
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Difference:
    """files: the first of them, by path; counts: of all, by kind of change; left_out: what was too deep to be compared, `raw`.
    fast: found by the file system's own difference, without walking the two trees."""

    files: tuple[FileChange, ...]
    packages: tuple[PackageChange, ...]
    counts: dict[ChangeKind, int] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    fast: bool = False

    @property
    def truncated(self) -> bool:
        return sum(self.counts.values()) > len(self.files)
