"""Where `up` points to when a daemon does not come up: files of ours, or systemd's journal."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sandkeep.app import standalone, systemd
from sandkeep.app.settings import Settings
from sandkeep.lib import process


async def test_without_systemd_it_is_our_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "installed", lambda _: False)
    (tmp_path / "runner.log").write_text("begun\nno pool\n")
    place, end = await standalone.said(Settings(log_folder=tmp_path), "runner", "server")
    assert place == f"look at {tmp_path}/runner.log and {tmp_path}/server.log"
    assert end == "begun\nno pool"


async def test_with_systemd_it_is_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(argv: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(stdout=f"{argv[-1]} said no pool\n")

    monkeypatch.setattr(systemd, "installed", lambda _: True)
    monkeypatch.setattr(process, "run", run)
    place, end = await standalone.said(Settings(instance="lab"), "runner", "server", "keeper")
    assert place == "look at journalctl -u sandkeep-lab-runner.service -u sandkeep-lab-server.service"
    assert end.splitlines() == [f"sandkeep-lab-{name}.service said no pool" for name in ("runner", "server")]
