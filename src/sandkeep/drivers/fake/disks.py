"""`Disks` for tests of logic: real folders in a temporary place, nothing of the kernel, nothing slow.

Limits are recorded and not enforced. A test sets `full` to meet NoCapacity, and reads `limits` and `calls`.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from sandkeep.contracts.disks import DiskFacts, GenerationSize, GenerationSizes, PoolContents, PoolSpace, Touched
from sandkeep.domain.capability import DiskCapabilities
from sandkeep.domain.errors import Conflict, InvalidArgument, NoCapacity, NotFound
from sandkeep.domain.ids import is_id

_TOTAL = 64 << 30


class FakeDisks:
    """In `folder`: templates/<id>, unsealed/<id>, disks/<sandbox>, generations/<sandbox>/<generation>/{disk,memory}."""

    def __init__(self, folder: Path) -> None:
        self.capabilities = DiskCapabilities(
            kind="fake", hard_limit=False, copy_on_write=False, notes=("For tests of logic: limits are not enforced.",)
        )
        self.full = False
        self.metadata_free: int | None = None
        self.limits: dict[str, int] = {}
        self.calls: list[tuple[str, ...]] = []
        self._origins: dict[str, str] = {}
        self._from: dict[str, str] = {}
        self._folder = folder

    async def open(self) -> None:
        for name in ("templates", "unsealed", "disks", "generations"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)

    async def close(self) -> bool:
        """Nothing is held."""
        return True

    async def space(self) -> PoolSpace:
        return PoolSpace(total=_TOTAL, free=0 if self.full else _TOTAL // 2, metadata_free=self.metadata_free)

    async def contents(self) -> PoolContents:
        generations, strangers = dict[str, str](), list[str]()
        for folder in ("templates", "disks", "generations"):
            strangers += [f"{folder}/{p.name}" for p in sorted((self._folder / folder).iterdir()) if not is_id(p.name)]
        for path in (self._folder / "generations").glob("*/*/disk"):
            generations[path.parent.name] = path.parent.parent.name
        return PoolContents(
            templates=frozenset(path.name for path in (self._folder / "templates").iterdir() if is_id(path.name)),
            disks={path.name: path.name for path in (self._folder / "disks").iterdir() if is_id(path.name)},
            generations=generations,
            strangers=tuple(strangers),
        )

    async def discard_partial(self) -> list[str]:
        halves = [path for path in (self._folder / "generations").glob("*/*") if not (path / "disk").exists()]
        halves += (self._folder / "unsealed").iterdir()
        for path in halves:
            shutil.rmtree(path)
        return [str(path.relative_to(self._folder)) for path in halves]

    async def begin_template(self, template_id: str) -> Path:
        sealed, fresh = self._path("templates", template_id), self._path("unsealed", template_id)
        if sealed.exists():
            return sealed
        self._need_room()
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        return fresh

    async def finish_template(self, template_id: str) -> int:
        sealed, fresh = self._path("templates", template_id), self._path("unsealed", template_id)
        if not sealed.exists():
            if not fresh.exists():
                raise NotFound(f"There is no template {template_id}")
            fresh.rename(sealed)
        return _size(sealed)

    async def template_from_disk(self, template_id: str, sandbox_id: str, generation_id: str | None = None) -> int:
        source = self._path("disks", sandbox_id)
        if generation_id is not None:
            source = self._generation(sandbox_id, generation_id) / "disk"
        self._clone(source, self._path("templates", template_id))
        return _size(self._path("templates", template_id))

    async def delete_template(self, template_id: str) -> None:
        for folder in ("templates", "unsealed"):
            shutil.rmtree(self._path(folder, template_id), ignore_errors=True)

    async def create(self, sandbox_id: str, template_id: str, limit: int) -> Path:
        self.calls.append(("create", sandbox_id, template_id))
        _check_limit(limit)
        disk = self._path("disks", sandbox_id)
        self._clone(self._path("templates", template_id), disk)
        self.limits.setdefault(sandbox_id, limit)
        self._origins[sandbox_id] = template_id
        return disk

    async def fork(self, sandbox_id: str, source_id: str, generation_id: str, limit: int) -> Path:
        self.calls.append(("fork", sandbox_id, source_id, generation_id))
        _check_limit(limit)
        self._known(source_id)
        self._clone(self._generation(source_id, generation_id) / "disk", self._path("disks", sandbox_id))
        self.limits.setdefault(sandbox_id, limit)
        if source_id in self._origins:
            self._origins[sandbox_id] = self._origins[source_id]
        self._from[sandbox_id] = generation_id
        return self.path(sandbox_id)

    async def begin_disk(self, sandbox_id: str, limit: int) -> Path:
        self.calls.append(("begin_disk", sandbox_id))
        _check_limit(limit)
        if self.path(sandbox_id).exists():
            raise Conflict(f"There is a disk of {sandbox_id}")
        self._need_room()
        fresh = self._path("unsealed", sandbox_id)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        self.limits[sandbox_id] = limit
        return fresh

    async def finish_disk(self, sandbox_id: str) -> Path:
        self.calls.append(("finish_disk", sandbox_id))
        disk, fresh = self.path(sandbox_id), self._path("unsealed", sandbox_id)
        if not disk.exists():
            if not fresh.exists():
                raise NotFound(f"No disk of {sandbox_id} was begun")
            fresh.rename(disk)
        return disk

    async def begin_generation(self, sandbox_id: str, generation_id: str, limit: int) -> Path:
        self.calls.append(("begin_generation", sandbox_id, generation_id))
        _check_limit(limit)
        generation = self._generation(sandbox_id, generation_id)
        if (generation / "disk").exists():
            raise Conflict(f"There is a generation {generation_id} of {sandbox_id}")
        self._need_room()
        fresh = self._path("unsealed", generation_id)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        (generation / "memory").mkdir(parents=True, exist_ok=True)
        self.limits[sandbox_id] = limit
        return fresh

    async def finish_generation(self, sandbox_id: str, generation_id: str) -> None:
        self.calls.append(("finish_generation", sandbox_id, generation_id))
        disk, fresh = self._generation(sandbox_id, generation_id) / "disk", self._path("unsealed", generation_id)
        if not disk.exists():
            if not fresh.exists():
                raise NotFound(f"No generation {generation_id} of {sandbox_id} was begun")
            fresh.rename(disk)

    async def drop_disk(self, sandbox_id: str) -> None:
        self.calls.append(("drop_disk", sandbox_id))
        for folder in (self._path("unsealed", sandbox_id), self.path(sandbox_id)):
            shutil.rmtree(folder, ignore_errors=True)

    def path(self, sandbox_id: str) -> Path:
        return self._path("disks", sandbox_id)

    async def set_limit(self, sandbox_id: str, limit: int) -> None:
        _check_limit(limit)
        self._known(sandbox_id)
        self.limits[sandbox_id] = limit

    async def used(self, sandbox_id: str) -> int:
        self._known(sandbox_id)
        generations = self._path("generations", sandbox_id)
        return _size(self.path(sandbox_id)) + sum(_size(disk) for disk in generations.glob("*/disk"))

    async def facts(self, sandbox_id: str) -> DiskFacts:
        self._known(sandbox_id)
        changed_at = self.path(sandbox_id).stat().st_mtime
        return DiskFacts(changed_at, self._origins.get(sandbox_id), self.limits.get(sandbox_id))

    async def sync(self) -> None:
        self.calls.append(("sync",))

    async def delete(self, sandbox_id: str) -> None:
        self.calls.append(("delete", sandbox_id))
        shutil.rmtree(self._path("generations", sandbox_id), ignore_errors=True)
        shutil.rmtree(self.path(sandbox_id), ignore_errors=True)
        self.limits.pop(sandbox_id, None)

    async def snapshot(self, sandbox_id: str, generation_id: str) -> None:
        self.calls.append(("snapshot", sandbox_id, generation_id))
        self._known(sandbox_id)
        generation = self._generation(sandbox_id, generation_id)
        self._clone(self.path(sandbox_id), generation / "disk")
        (generation / "memory").mkdir(exist_ok=True)

    async def restore(self, sandbox_id: str, generation_id: str) -> Path:
        self.calls.append(("restore", sandbox_id, generation_id))
        await self.check_generation(sandbox_id, generation_id)
        source = self._generation(sandbox_id, generation_id) / "disk"
        shutil.rmtree(self.path(sandbox_id), ignore_errors=True)
        _copy(source, self.path(sandbox_id))
        self._from[sandbox_id] = generation_id
        return self.path(sandbox_id)

    async def copy_generation(
        self, sandbox_id: str, generation_id: str, source_id: str, source_generation_id: str
    ) -> None:
        self.calls.append(("copy_generation", sandbox_id, generation_id, source_id, source_generation_id))
        self._known(sandbox_id)
        await self.check_generation(source_id, source_generation_id)
        source, target = self._generation(source_id, source_generation_id), self._generation(sandbox_id, generation_id)
        if not target.exists():
            _copy(source, target)

    async def came_from(self, sandbox_id: str, owner_id: str, generation_id: str) -> bool | None:
        return self._from.get(sandbox_id) == generation_id

    async def check_generation(self, sandbox_id: str, generation_id: str) -> None:
        if not (self._generation(sandbox_id, generation_id) / "disk").exists():
            raise NotFound(f"There is no generation {generation_id} of {sandbox_id}")

    async def drop_generation(self, sandbox_id: str, generation_id: str) -> None:
        self.calls.append(("drop_generation", sandbox_id, generation_id))
        shutil.rmtree(self._generation(sandbox_id, generation_id), ignore_errors=True)

    async def changed(self, sandbox_id: str, generation_id: str) -> bool:
        self.calls.append(("changed", sandbox_id, generation_id))
        await self.check_generation(sandbox_id, generation_id)
        return _files(self.path(sandbox_id)) != _files(self._generation(sandbox_id, generation_id) / "disk")

    async def measure(self, sandbox_id: str, generations: Sequence[tuple[str, str | None]]) -> GenerationSizes:
        """Files are the same when they have the same content, as if they were one extent each."""
        trees: dict[str, set[bytes]] = {}
        for generation, _ in generations:
            await self.check_generation(sandbox_id, generation)
            trees[generation] = _contents(self._generation(sandbox_id, generation) / "disk")
        template = _contents(self._path("templates", self._origins.get(sandbox_id, sandbox_id)))
        elsewhere = _contents(self.path(sandbox_id)) | template
        sizes, spans = dict[str, GenerationSize](), dict[tuple[str, str], int]()
        for generation, parent in generations:
            older = trees[parent] if parent else template
            alone = trees[generation] - elsewhere - set().union(*(t for g, t in trees.items() if g != generation))
            sizes[generation] = GenerationSize(sum(map(len, trees[generation] - older)), sum(map(len, alone)))
        for content in set().union(*trees.values()) - elsewhere:
            holders = [generation for generation, _ in generations if content in trees[generation]]
            span = holders[0], holders[-1]
            spans[span] = spans.get(span, 0) + len(content)
        return GenerationSizes(sizes, tuple((first, last, size) for (first, last), size in spans.items()))

    def generation_path(self, sandbox_id: str, generation_id: str) -> Path:
        return self._generation(sandbox_id, generation_id) / "disk"

    async def touched(self, before: tuple[str, str], after: tuple[str, str]) -> Touched | None:
        for one in (before, after):
            await self.check_generation(*one)
        return None

    async def mark(self, sandbox_id: str, name: str) -> int | None:
        return None

    async def inodes_since(self, sandbox_id: str, name: str, moment: int) -> frozenset[int] | None:
        return None

    def memory_folder(self, sandbox_id: str, generation_id: str) -> Path:
        return self._generation(sandbox_id, generation_id) / "memory"

    async def make_memory_folder(self, sandbox_id: str, generation_id: str) -> Path:
        self._known(sandbox_id)
        memory = self.memory_folder(sandbox_id, generation_id)
        memory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return memory

    def _path(self, folder: str, identifier: str) -> Path:
        if not is_id(identifier):
            raise InvalidArgument(f"{identifier!r} is not an id")
        return self._folder / folder / identifier

    def _generation(self, sandbox_id: str, generation_id: str) -> Path:
        if not is_id(generation_id):
            raise InvalidArgument(f"{generation_id!r} is not an id")
        return self._path("generations", sandbox_id) / generation_id

    def _known(self, sandbox_id: str) -> None:
        if not self.path(sandbox_id).exists() and not self._path("unsealed", sandbox_id).exists():
            raise NotFound(f"There is no disk of {sandbox_id}")

    def _need_room(self) -> None:
        if self.full:
            raise NoCapacity("The pool is full", pool_free=0)

    def _clone(self, source: Path, target: Path) -> None:
        if target.exists():
            return
        if not source.exists():
            raise NotFound(f"There is no {source.relative_to(self._folder)}")
        self._need_room()
        _copy(source, target)


def _check_limit(limit: int) -> None:
    if limit <= 0:
        raise InvalidArgument("A disk's limit is a number of bytes above zero")


def _copy(source: Path, target: Path) -> None:
    """Files, folders and links; what is neither (a FIFO, a device) is left out."""
    shutil.copytree(source, target, symlinks=True, ignore=_special)


def _special(folder: str, names: list[str]) -> list[str]:
    paths = {name: Path(folder, name) for name in names}
    return [n for n, p in paths.items() if not (p.is_symlink() or p.is_file() or p.is_dir())]


def _size(root: Path) -> int:
    if not root.exists():
        return 0
    return sum(os.lstat(path).st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def _files(root: Path) -> dict[str, tuple[int, bytes]]:
    found = {}
    for path in root.rglob("*"):
        content = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (path.lstat().st_mode, content)
    return found


def _contents(root: Path) -> set[bytes]:
    return {content for _, content in _files(root).values() if content} if root.exists() else set()
