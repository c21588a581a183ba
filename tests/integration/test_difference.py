"""What differs between two moments of a disk: the file system's own difference finds what walking both trees does."""

import os
import random
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from sandkeep.domain.browse import Aspect, FileChange
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.engine.difference import Comparison
from sandkeep.engine.packages import Packages
from support.disks import Bench, bench

pytestmark = [pytest.mark.anyio, pytest.mark.requires("btrfs")]


@pytest.fixture
async def on(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench("btrfs", tmp_path) as made:
        yield made


async def keep(on: Bench, sandbox: str) -> str:
    generation = new_id(IdKind.GENERATION)
    await on.disks.snapshot(sandbox, generation)
    return generation


async def compared(on: Bench, sandbox: str, before: str, after: str, *, walk: bool) -> dict[str, FileChange]:
    touched = None if walk else await on.disks.touched((sandbox, before), (sandbox, after))
    roots = [on.disks.generation_path(sandbox, generation) for generation in (before, after)]
    comparison = Comparison(roots[0], roots[1], 100_000, lambda: None, lambda path: None)
    comparison.run(touched)
    assert comparison.left_out == []
    found = {change.path: change for change in comparison.rows()}
    assert sum(comparison.counts.values()) == len(found)
    return found


def told(found: dict[str, FileChange]) -> dict[str, str]:
    return {path: f"{change.change} {' '.join(change.what)}".strip() for path, change in found.items()}


async def test_each_kind_of_change_is_told(on: Bench) -> None:
    sandbox = await on.sandbox()
    root = on.disks.path(sandbox)
    for name in ("same", "content", "same-size", "mode", "owner", "touched", "gone", "noted", "kind"):
        (root / name).write_text(name)
    (root / "link").symlink_to("same")
    (root / "folder/deep").mkdir(parents=True)
    (root / "folder/deep/file").write_text("x")
    (root / "one-name").write_text("shared")
    (root / "other-name").hardlink_to(root / "one-name")
    before = await keep(on, sandbox)
    (root / "content").write_text("longer than before")
    (root / "same-size").write_text("size-same")
    (root / "mode").chmod(0o4711)
    os.chown(root / "owner", 12, 34)
    os.utime(root / "touched", (5, 5))
    (root / "gone").unlink()
    os.setxattr(root / "noted", "user.note", b"x")
    (root / "kind").unlink()
    (root / "kind").mkdir()
    (root / "link").unlink()
    (root / "link").symlink_to("content")
    (root / "folder").rename(root / "elsewhere")
    (root / "new").write_text("")
    (root / "new-folder").mkdir()
    (root / "new-folder/file").write_text("y")
    (root / "one-name").write_text("changed")
    Path(os.fsdecode(os.fsencode(root) + b"/not-\xff-utf8")).write_text("z")
    after = await keep(on, sandbox)
    fast = told(await compared(on, sandbox, before, after, walk=False))
    assert fast == {
        "content": "changed content",
        "same-size": "changed content",
        "mode": "changed mode",
        "owner": "changed owner",
        "touched": "changed time",
        "gone": "removed",
        "noted": "changed attributes",
        "kind": "changed type",
        "link": "changed content",
        "folder": "removed",
        "folder/deep": "removed",
        "folder/deep/file": "removed",
        "elsewhere": "added",
        "elsewhere/deep": "added",
        "elsewhere/deep/file": "added",
        "new": "added",
        "new-folder": "added",
        "new-folder/file": "added",
        "one-name": "changed content",
        "other-name": "changed content",
        "not-\xff-utf8": "added",
    }
    walked = told(await compared(on, sandbox, before, after, walk=True))
    assert walked == {path: said for path, said in fast.items() if path != "noted"}
    back = await compared(on, sandbox, after, before, walk=False)
    assert {path for path, change in back.items() if change.change == "removed"} == {
        path for path, said in fast.items() if said == "added"
    }


def churn(root: Path, chance: random.Random, steps: int) -> None:
    """What a guest may do to a tree, at random: also swaps of folders, moves into one another, and reuse of names."""
    for _ in range(steps):
        folders = [root, *[path for path in root.rglob("*") if path.is_dir() and not path.is_symlink()]]
        files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
        folder, name = chance.choice(folders), f"n{chance.randrange(6)}"
        match chance.randrange(9):
            case 0 | 1:
                if not (folder / name).is_dir():
                    (folder / name).write_bytes(chance.randbytes(chance.choice([0, 10, 5000])))
            case 2:
                (folder / name).mkdir(exist_ok=True) if not (folder / name).is_file() else None
            case 3 if files:
                with chance.choice(files).open("ab") as file:
                    file.write(chance.randbytes(chance.choice([1, 4096])))
            case 4 if files:
                chance.choice(files).unlink()
            case 5 if len(folders) > 1:
                moved = chance.choice(folders[1:])
                if not (folder / name).exists() and not folder.is_relative_to(moved):
                    moved.rename(folder / name)
            case 6 if len(folders) > 2:
                one, other = chance.sample(folders[1:], 2)
                if not one.is_relative_to(other) and not other.is_relative_to(one):
                    spare = root / "spare"
                    one.rename(spare)
                    other.rename(one)
                    spare.rename(other)
            case 7 if files:
                chance.choice(files).chmod(chance.choice([0o600, 0o644, 0o755]))
            case 8 if files and not (folder / name).exists():
                (folder / name).hardlink_to(chance.choice(files))


@pytest.mark.parametrize("seed", range(12))
async def test_it_finds_what_walking_finds(on: Bench, seed: int) -> None:
    chance, sandbox = random.Random(seed), await on.sandbox()
    root = on.disks.path(sandbox) / "tree"
    root.mkdir()
    churn(root, chance, 60)
    moments = [await keep(on, sandbox)]
    for _ in range(6):
        churn(root, chance, chance.choice([3, 30]))
        moments.append(await keep(on, sandbox))
    pairs = [*pairwise(moments), (moments[0], moments[-1]), (moments[-1], moments[0])]
    for before, after in pairs:
        fast = await compared(on, sandbox, before, after, walk=False)
        walked = await compared(on, sandbox, before, after, walk=True)
        # Of a file with its bytes and its time as before the walk knows nothing; the other way round nothing is missing.
        unsure = {path for path in fast.keys() - walked.keys() if fast[path].what == (Aspect.CONTENT,)}
        assert told({path: change for path, change in fast.items() if path not in unsure}) == told(walked)


async def test_packages_are_told_by_what_differs(on: Bench) -> None:
    sandbox = await on.sandbox()
    root = on.disks.path(sandbox)
    status = root / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    paragraph = "Package: {}\nStatus: install ok installed\nVersion: {}\nArchitecture: {}\nDescription: x\n y: z\n\n"
    status.write_text(paragraph.format("curl", "7.1", "amd64") + paragraph.format("old", "1", "all"))
    python = root / "usr/lib/python3/dist-packages"
    for name in ("Foo_Bar-1.0", "stays-3"):
        (python / f"{name}.dist-info").mkdir(parents=True)
        (python / f"{name}.dist-info/METADATA").write_text(name)
    modules = root / "app/node_modules"
    for name, version in (("left-pad", "1.0.0"), ("@scope/thing", "2.0.0"), ("broken", "0")):
        (modules / name).mkdir(parents=True)
        (modules / name / "package.json").write_text(f'{{"name": "{name}", "version": "{version}"}}')
    before = await keep(on, sandbox)
    removed = "Package: old\nStatus: deinstall ok config-files\nVersion: 1\n\n"
    status.write_text(
        paragraph.format("curl", "7.2", "amd64") + removed + paragraph.format("new", "1:2-3", "all") + "\xff: \0\n:\n"
    )
    (python / "Foo_Bar-1.0.dist-info").rename(python / "foo_bar-1.1.dist-info")
    (modules / "left-pad/package.json").write_text('{"version": "1.3.0"}')
    (modules / "@scope/thing/package.json").unlink()
    (modules / "@scope/thing/package.json").symlink_to("/etc/passwd")
    (modules / "broken/package.json").write_text("[" * 100_000)
    (modules / "huge").mkdir()
    with (modules / "huge/package.json").open("wb") as file:
        file.truncate(1 << 40)
    (modules / "pipe").mkdir()
    os.mkfifo(modules / "pipe/package.json")
    after = await keep(on, sandbox)
    found, roots = Packages(), [on.disks.generation_path(sandbox, one) for one in (before, after)]
    touched = await on.disks.touched((sandbox, before), (sandbox, after))
    Comparison(roots[0], roots[1], 10, lambda: None, found.seen).run(touched)
    told = {(one.manager, one.name, one.place): (one.before, one.after) for one in found.changes(*roots)}
    assert told == {
        ("dpkg", "curl", ""): ("7.1", "7.2"),
        ("dpkg", "old", ""): ("1", None),
        ("dpkg", "new", ""): (None, "1:2-3"),
        ("pip", "foo-bar", "usr/lib/python3/dist-packages"): ("1.0", "1.1"),
        ("npm", "left-pad", "app/node_modules"): ("1.0.0", "1.3.0"),
        ("npm", "@scope/thing", "app/node_modules"): ("2.0.0", None),
        ("npm", "broken", "app/node_modules"): ("0", None),
    }


async def test_a_tree_too_deep_is_said_and_not_followed_for_ever(on: Bench) -> None:
    sandbox = await on.sandbox()
    before = await keep(on, sandbox)
    fd = os.open(on.disks.path(sandbox), os.O_RDONLY)
    for _ in range(400):
        os.mkdir("d" * 50, dir_fd=fd)
        deeper = os.open("d" * 50, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)
    after = await keep(on, sandbox)
    roots = [on.disks.generation_path(sandbox, one) for one in (before, after)]
    comparison = Comparison(roots[0], roots[1], 1000, lambda: None, lambda path: None)
    comparison.run(None)
    assert len(comparison.left_out) == 1
    assert len(comparison.rows()) > 200
