"""The layout of a pool and the copies of the directory driver, where a guest may have shaped the tree."""

import os
from pathlib import Path

import pytest

from sandkeep.domain.errors import Internal, InvalidArgument
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.drivers.disk.directory import DirectoryDisks, DirectorySettings
from sandkeep.drivers.disk.layout import Layout, survey
from sandkeep.drivers.disk.tree import tree_size

SANDBOX, OTHER = new_id(IdKind.SANDBOX), new_id(IdKind.SANDBOX)
TEMPLATE, WHOLE, HALF = new_id(IdKind.TEMPLATE), new_id(IdKind.GENERATION), new_id(IdKind.GENERATION)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_paths_come_from_ids_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert layout.disk(SANDBOX) == tmp_path / "sandboxes" / SANDBOX / "disk"
    assert layout.memory(SANDBOX, WHOLE) == tmp_path / "sandboxes" / SANDBOX / "generations" / WHOLE / "memory"
    for name in ("..", "a/b", f"{SANDBOX}.new", SANDBOX.upper(), f"{SANDBOX}\n"):
        with pytest.raises(InvalidArgument):
            layout.disk(name)


def test_a_survey_tells_whole_from_half_from_strange(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.make()
    for folder in (
        f"templates/{TEMPLATE}",
        f"templates/{new_id(IdKind.TEMPLATE)}.new",
        f"sandboxes/{SANDBOX}/disk",
        f"sandboxes/{SANDBOX}/disk.new",
        f"sandboxes/{SANDBOX}/generations/{WHOLE}/disk",
        f"sandboxes/{SANDBOX}/generations/{HALF}/memory",
        f"sandboxes/{SANDBOX}/generations/odd",
        f"sandboxes/{OTHER}/generations",
        f"sandboxes/{new_id(IdKind.SANDBOX)}/whose",
        "lost+found",
    ):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "sandboxes" / new_id(IdKind.SANDBOX)).symlink_to("/etc")
    found = survey(layout)
    assert found.contents.templates == {TEMPLATE}
    assert found.contents.disks == {SANDBOX: SANDBOX}
    assert found.contents.generations == {WHOLE: SANDBOX}
    assert len(found.contents.strangers) == 4
    assert "lost+found" in found.contents.strangers
    partials = {str(path.relative_to(tmp_path)) for path in found.partials}
    assert {name for name in partials if not name.startswith("templates/")} == {
        f"sandboxes/{SANDBOX}/disk.new",
        f"sandboxes/{SANDBOX}/generations/{HALF}",
        f"sandboxes/{OTHER}",
    }
    assert len(partials) == 4


def test_an_empty_or_missing_pool_surveys_as_nothing(tmp_path: Path) -> None:
    found = survey(Layout(tmp_path / "none"))
    assert (found.contents.disks, found.partials) == ({}, ())


def test_tree_size_counts_each_file_once_and_follows_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    one = tree_size(tmp_path)
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to("/usr")
    (tmp_path / "d").symlink_to(".")
    os.mkfifo(tmp_path / "e")
    assert tree_size(tmp_path) == one


@pytest.mark.anyio
async def test_a_tree_deeper_than_any_path_is_refused_and_removed(tmp_path: Path) -> None:
    disks = DirectoryDisks(DirectorySettings(tmp_path / "pool", reserve=0))
    await disks.open()
    fd = os.open(await disks.begin_template(TEMPLATE), os.O_RDONLY)
    for _ in range(100):
        os.mkdir("d" * 60, dir_fd=fd)
        below = os.open("d" * 60, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    await disks.finish_template(TEMPLATE)
    with pytest.raises(Internal, match="File name too long"):
        await disks.create(SANDBOX, TEMPLATE, 1 << 20)
    assert (await disks.contents()).disks == {}
    await disks.delete(SANDBOX)
    await disks.delete_template(TEMPLATE)
    assert await disks.contents() == survey(Layout(tmp_path / "none")).contents
