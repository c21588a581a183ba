"""Where things lie in a pool, and what lies there now. Shared by the btrfs and the directory driver.

    templates/<template>                               sealed
    templates/<template>.new                           being filled: partial
    sandboxes/<sandbox>/disk                           the writable root; the sandbox exists when this does
    sandboxes/<sandbox>/disk.new                       half of a create, restore or delete: partial
    sandboxes/<sandbox>/generations/<generation>/disk  read-only; the generation exists when this does
    sandboxes/<sandbox>/generations/<generation>/memory

Every path is made here from ids that are checked first, so no path leads out of the pool. A generation that lacks its
`disk` is partial, and a sandbox that has neither a disk nor a whole generation. Every name that no rule above explains
is a stranger and nobody's to remove, nor is the folder that holds it.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sandkeep.contracts.disks import DiskFacts, PoolContents
from sandkeep.domain.errors import Conflict, InvalidArgument, NotFound
from sandkeep.domain.ids import is_id

DISK, MEMORY, GENERATIONS = "disk", "memory", "generations"
PARTIAL = ".new"
FICLONE = 0x40049409  # linux/fs.h
LIMIT_NOTE = "trusted.sandkeep.limit"
_ORIGIN_NOTE = "trusted.sandkeep.template"
_MARK_NOTE = "trusted.sandkeep.mark"


def share_files(source: Path, target: Path) -> None:
    """The regular files of one folder of ours in another: by reference where the file system can, else copied. Synced."""
    for entry in sorted(source.iterdir()):
        with entry.open("rb") as one, (target / entry.name).open("wb") as other:
            os.fchmod(other.fileno(), 0o600)
            try:
                fcntl.ioctl(other.fileno(), FICLONE, one.fileno())
            except OSError:
                shutil.copyfileobj(one, other, 1 << 20)
            other.flush()
            os.fsync(other.fileno())


@dataclass(frozen=True)
class Layout:
    """Paths in one pool. Raises InvalidArgument for what is no id."""

    pool: Path

    @property
    def templates(self) -> Path:
        return self.pool / "templates"

    @property
    def sandboxes(self) -> Path:
        return self.pool / "sandboxes"

    def make(self) -> None:
        """The two top folders, root's alone."""
        self.pool.chmod(0o700)
        for folder in (self.templates, self.sandboxes):
            folder.mkdir(mode=0o700, exist_ok=True)

    def template(self, template_id: str) -> Path:
        return self.templates / _checked(template_id)

    def unsealed(self, template_id: str) -> Path:
        return self.templates / (_checked(template_id) + PARTIAL)

    def sandbox(self, sandbox_id: str) -> Path:
        return self.sandboxes / _checked(sandbox_id)

    def disk(self, sandbox_id: str) -> Path:
        return self.sandbox(sandbox_id) / DISK

    def generation(self, sandbox_id: str, generation_id: str) -> Path:
        return self.sandbox(sandbox_id) / GENERATIONS / _checked(generation_id)

    def generation_disk(self, sandbox_id: str, generation_id: str) -> Path:
        return self.generation(sandbox_id, generation_id) / DISK

    def source(self, sandbox_id: str, generation_id: str | None) -> Path:
        """What a template is made from: a generation's disk or, without one, the sandbox's own."""
        return self.disk(sandbox_id) if generation_id is None else self.generation_disk(sandbox_id, generation_id)

    def memory(self, sandbox_id: str, generation_id: str) -> Path:
        return self.generation(sandbox_id, generation_id) / MEMORY

    def check_generation(self, sandbox_id: str, generation_id: str) -> None:
        """Raises NotFound."""
        if not self.generation_disk(sandbox_id, generation_id).is_dir():
            raise NotFound(f"There is no generation {generation_id} of {sandbox_id} in the pool")

    def check_no_disk(self, sandbox_id: str) -> None:
        """Raises Conflict."""
        if self.disk(sandbox_id).exists():
            raise Conflict(f"There is a disk of {sandbox_id} in the pool")

    def finish_disk(self, sandbox_id: str) -> Path:
        """What was begun has the disk's name. Raises NotFound."""
        disk = self.disk(sandbox_id)
        if not disk.exists():
            fresh = disk.with_name(DISK + PARTIAL)
            if not fresh.exists():
                raise NotFound(f"No disk of {sandbox_id} was begun")
            fresh.rename(disk)
        return disk

    def check_no_generation(self, sandbox_id: str, generation_id: str) -> None:
        """Raises Conflict."""
        if self.generation_disk(sandbox_id, generation_id).exists():
            raise Conflict(f"There is a generation {generation_id} of {sandbox_id} in the pool")

    def begun_generation(self, sandbox_id: str, generation_id: str) -> Path:
        """Raises NotFound."""
        fresh = self.generation(sandbox_id, generation_id) / (DISK + PARTIAL)
        if not fresh.exists():
            raise NotFound(f"No generation {generation_id} of {sandbox_id} was begun")
        return fresh

    def has_generations(self, sandbox_id: str) -> bool:
        """Whole ones."""
        return any(_is_folder(path / DISK) for path in _entries(self.sandbox(sandbox_id) / GENERATIONS))

    def note_origin(self, sandbox_id: str, template_id: str) -> None:
        """On the sandbox's folder, for the day on which its record is lost; not every file system can keep it."""
        with suppress(OSError):
            os.setxattr(self.sandbox(sandbox_id), _ORIGIN_NOTE, template_id.encode(), follow_symlinks=False)

    def facts(self, sandbox_id: str) -> DiskFacts:
        """Raises NotFound."""
        home = self.sandbox(sandbox_id)
        try:
            changed_at = home.stat().st_mtime
        except FileNotFoundError as error:
            raise NotFound(f"There is no disk of {sandbox_id} in the pool") from error
        template, limit = _note(home, _ORIGIN_NOTE), _note(home, LIMIT_NOTE)
        return DiskFacts(
            changed_at,
            template if template and is_id(template) else None,
            int(limit) if limit and limit.isdigit() else None,
        )

    def make_generation(self, sandbox_id: str, generation_id: str) -> Path:
        """The generation's folder and its memory folder. Returns the latter. Raises FileNotFoundError when the sandbox
        has no folder."""
        memory = self.memory(sandbox_id, generation_id)
        memory.parent.parent.mkdir(mode=0o700, exist_ok=True)
        memory.parent.mkdir(mode=0o700, exist_ok=True)
        memory.mkdir(mode=0o700, exist_ok=True)
        return memory


@dataclass(frozen=True)
class Survey:
    """What a walk through the pool's own folders found."""

    contents: PoolContents
    partials: tuple[Path, ...]
    """What a crash left half-made, as the folder to remove."""
    sandboxes: tuple[Path, ...]
    """Every sandbox's folder, the partial ones too."""


def survey(layout: Layout) -> Survey:
    templates: set[str] = set()
    disks: dict[str, str] = {}
    generations: dict[str, str] = {}
    strangers: list[Path] = [p for p in _entries(layout.pool) if p not in {layout.templates, layout.sandboxes}]
    partials: list[Path] = []
    folders: list[Path] = []
    for path in _entries(layout.templates):
        if is_id(path.name.removesuffix(PARTIAL)):
            partials.append(path) if path.name.endswith(PARTIAL) else templates.add(path.name)
        else:
            strangers.append(path)
    for path in _entries(layout.sandboxes):
        if not is_id(path.name) or not _is_folder(path):
            strangers.append(path)
            continue
        folders.append(path)
        odd = _beside(path, {DISK, DISK + PARTIAL, GENERATIONS})
        whole: list[Path] = []
        halves: list[Path] = []
        for generation in _entries(path / GENERATIONS):
            beside = _beside(generation, {DISK, DISK + PARTIAL, MEMORY}) if is_id(generation.name) else [generation]
            odd += beside
            if _is_folder(generation / DISK):
                whole.append(generation)
            elif not beside:
                halves.append(generation)
        strangers += odd
        generations.update({generation.name: path.name for generation in whole})
        if _is_folder(path / DISK):
            disks[path.name] = path.name
        elif not whole and not odd:
            partials.append(path)
            continue
        partials += halves
        partials += [fresh for fresh in (path / (DISK + PARTIAL),) if _is_folder(fresh)]
    names = tuple(sorted(str(path.relative_to(layout.pool)) for path in strangers))
    return Survey(PoolContents(frozenset(templates), disks, generations, names), tuple(partials), tuple(folders))


def note_mark(disk: Path, name: str) -> bool:
    """On the root of the disk itself, so that it goes with every clone; False: it cannot be kept. Of the trusted names a guest
    can set none. Raises FileNotFoundError."""
    try:
        os.setxattr(disk, _MARK_NOTE, name.encode(), follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def mark_of(disk: Path) -> str | None:
    """Raises FileNotFoundError."""
    os.lstat(disk)
    return _note(disk, _MARK_NOTE)


def _note(folder: Path, name: str) -> str | None:
    try:
        return os.getxattr(folder, name, follow_symlinks=False).decode(errors="replace")
    except OSError:
        return None


def _checked(identifier: str) -> str:
    if not is_id(identifier):
        raise InvalidArgument(f"{identifier!r} is not an id")
    return identifier


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except FileNotFoundError:
        return


def _beside(folder: Path, expected: set[str]) -> list[Path]:
    return [path for path in _entries(folder) if path.name not in expected]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
