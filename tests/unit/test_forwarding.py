"""What setup changes for all instances of a host is put back by the last of them."""

import os
from pathlib import Path

import pytest

from sandkeep.app.settings import Settings
from sandkeep.app.setup import changes


@pytest.fixture
def sysctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "ip_forward"
    monkeypatch.setattr(changes, "FORWARD", file)
    monkeypatch.setattr(changes, "_forwarders", lambda: tmp_path / "forwarders")
    monkeypatch.setattr(changes, "forwarding_enabled", lambda: file.read_text().strip() == "1")
    return file


def test_the_last_instance_puts_back_what_was_before_the_first(sysctl: Path) -> None:
    sysctl.write_text("0\n")
    said: list[str] = []
    one, other = Settings(instance="one"), Settings(instance="other")
    for settings in (one, other, one):  # each start of a runner says it again
        changes.enable_forwarding(settings, said.append)
    assert (sysctl.read_text(), len(said)) == ("1", 1)
    changes.restore_forwarding(one)
    assert sysctl.read_text() == "1", "the other one needs it"
    changes.restore_forwarding(other)
    assert sysctl.read_text() == "0"
    assert os.listdir(sysctl.parent) == ["ip_forward"]


def test_what_the_host_had_stays(sysctl: Path) -> None:
    sysctl.write_text("1\n")
    settings = Settings(instance="one")
    changes.enable_forwarding(settings, lambda _: None)
    changes.restore_forwarding(settings)
    assert sysctl.read_text() == "1\n"
