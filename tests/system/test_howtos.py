"""README and every how-to are executed as they are written, against an instance with the `base` template."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.instance import Instance, client_of
from support.pages import matches, run_page, seen, steps

ROOT = Path(__file__).parents[2]
HOWTOS = [ROOT / "README.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]

pytestmark = pytest.mark.requires("btrfs", "gvisor", "runc")


@pytest.fixture(scope="module")
def based() -> Iterator[Instance]:
    with Instance.made("base") as made:
        yield made


def programs(folder: Path) -> str:
    """A folder for PATH with `sandkeep` and `python3` of this installation."""
    folder.mkdir()
    for name, arguments in (("sandkeep", " -m sandkeep.cli.main"), ("python3", "")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable}{arguments} "$@"\n')
        script.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def reader(instance: Instance, folder: Path) -> dict[str, str]:
    """The environment of somebody who just typed `sandkeep up`. That the instance is not named `default` and lives
    elsewhere is all that differs."""
    return {
        **instance.env,
        "PATH": programs(folder / "bin"),
        "HOME": str(folder),
        "SANDKEEP_URL": instance.config["url"],
        "SANDKEEP_KEY": instance.config["key"],
    }


SHORT = {"README", "sandboxes", "pause", "exec"}
"""Run each time; the others with `make test-all`."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[] if page.stem in SHORT else [pytest.mark.long], id=page.stem) for page in HOWTOS],
)
def test_it_works_as_written(page: Path, based: Instance, tmp_path: Path) -> None:
    based.ensure_up()
    work = tmp_path / "work"
    work.mkdir()
    try:
        run_page(page, work, reader(based, tmp_path))
    finally:
        with client_of(based) as client:
            based.clean(client)
    assert based.fsck() == []


def test_every_shell_block_is_run_or_says_why_not() -> None:
    """A block that is not run is introduced by a line with `(not run here` or is for another program."""
    unsaid = []
    for page in HOWTOS:
        assert steps(page), page
        lines = page.read_text().splitlines()
        for number, line in enumerate(lines):
            if line in ("```sh", "```python"):
                before = next(text for text in reversed(lines[:number]) if text.strip())
                if "(not run" not in before:
                    unsaid.append(f"{page.name}:{number + 1}")
    assert unsaid == []


def test_the_reader_sees_what_a_terminal_shows() -> None:
    assert seen("\r\x1b[Kpausing dev ... 1s\r\x1b[Kdev is paused\r\n") == "dev is paused\n"
    assert matches("a ... c\n...\nend\n", "a b c\n1\n2\nend\n")
    assert matches("one\n...\n", "one\n")
    assert not matches("one\n", "one\ntwo\n")
    assert not matches("a...c\n", "a\nc\n")
