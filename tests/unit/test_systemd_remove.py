"""What a purge takes from systemd, on a folder of units and a systemctl that only notes what it was told."""

from pathlib import Path

import pytest

from sandkeep.app import systemd
from sandkeep.app.daemon import installation_stamp, note_build, stamp_file
from sandkeep.app.units import UnitNames
from sandkeep.lib import process


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []

    async def run(argv: list[str], **_: object) -> None:
        said.append(" ".join(argv[1:]))

    monkeypatch.setattr(systemd, "_FOLDER", tmp_path)
    monkeypatch.setattr(process, "run", run)
    return said


def install(folder: Path, instance: str) -> UnitNames:
    names = UnitNames(instance)
    for name in (*names.services, names.slice):
        (folder / name).touch()
    return names


async def test_the_last_instance_takes_the_slice_around_it_along(tmp_path: Path, told: list[str]) -> None:
    install(tmp_path, "lab")
    await systemd.remove("lab")
    assert list(tmp_path.iterdir()) == []
    assert told[-2:] == ["stop sandkeep.slice", "daemon-reload"]


async def test_another_instance_keeps_it(tmp_path: Path, told: list[str]) -> None:
    install(tmp_path, "lab")
    others = install(tmp_path, "other")
    await systemd.remove("lab")
    assert {path.name for path in tmp_path.iterdir()} == {*others.services, others.slice}
    assert "stop sandkeep-lab.slice" in told
    assert "stop sandkeep.slice" not in told


def test_after_a_reboot_the_runner_notes_its_build_and_never_another_s(tmp_path: Path) -> None:
    note_build(tmp_path)
    assert stamp_file(tmp_path).read_text() == installation_stamp()
    stamp_file(tmp_path).write_text("another")
    note_build(tmp_path)
    assert stamp_file(tmp_path).read_text() == "another"
