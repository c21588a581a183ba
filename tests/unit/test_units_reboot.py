"""systemd units: what keeps sandboxes alive when a daemon ends, and what the daemons find after a reboot."""

from dataclasses import replace
from pathlib import Path

import pytest

from sandkeep.app.units import UnitFacts, UnitNames, units

FACTS = UnitFacts("lab", Path("/opt/sandkeep/1/bin/python"), "keeper", ("chown", "sys_admin"), 257, 60.0)
NAMES = UnitNames("lab")
DAEMONS = (NAMES.runner, NAMES.server)


def _lines(name: str) -> list[str]:
    return units(FACTS)[name].splitlines()


def test_what_is_installed() -> None:
    assert set(units(FACTS)) == {*NAMES.services, NAMES.slice}


@pytest.mark.parametrize("name", NAMES.services)
def test_a_process_that_ends_ends_no_sandbox(name: str) -> None:
    for line in ("KillMode=process", "Restart=always", "WantedBy=multi-user.target"):
        assert line in _lines(name)


@pytest.mark.parametrize("name", NAMES.services)
def test_none_is_left_dead_for_ending_often(name: str) -> None:
    lines = _lines(name)
    assert lines.index("[Unit]") < lines.index("StartLimitIntervalSec=0") < lines.index("[Service]")


def test_sandboxes_lie_in_a_delegated_group_of_a_slice_of_their_own() -> None:
    for line in ("Delegate=yes", "TasksMax=infinity", f"Slice={NAMES.slice}"):
        assert line in _lines(NAMES.sandboxes)
    for name in DAEMONS:  # what limits the slice leaves them alone
        assert not [line for line in _lines(name) if line.startswith("Slice=")]
    assert f"After=network.target local-fs.target {NAMES.sandboxes}" in _lines(NAMES.runner)


@pytest.mark.parametrize(("version", "expected"), [(252, []), (254, ["DelegateSubgroup=holder"])])
def test_the_unit_can_be_restarted_while_there_are_sandboxes(version: int, expected: list[str]) -> None:
    text = units(replace(FACTS, systemd=version))[NAMES.sandboxes]
    assert [line for line in text.splitlines() if line.startswith("DelegateSubgroup")] == expected


@pytest.mark.parametrize(
    ("instance", "group"),
    [
        ("lab", "sandkeep.slice/sandkeep-lab.slice/sandkeep-lab-sandboxes.service"),
        ("a-b", r"sandkeep.slice/sandkeep-a\x2db.slice/sandkeep-a-b-sandboxes.service"),
    ],
)
def test_one_instance_lies_in_no_slice_of_another(instance: str, group: str) -> None:
    assert UnitNames(instance).group == group


def test_the_server_is_unprivileged() -> None:
    for line in (
        "User=keeper",
        "Group=keeper",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
    ):
        assert line in _lines(NAMES.server)


def test_the_runner_keeps_what_it_uses_and_lets_runc_machines_gain() -> None:
    assert "CapabilityBoundingSet=CAP_CHOWN CAP_SYS_ADMIN" in _lines(NAMES.runner)
    assert "NoNewPrivileges=yes" not in _lines(NAMES.runner)


@pytest.mark.parametrize("name", DAEMONS)
def test_daemons_leave_no_trace(name: str) -> None:
    for line in ("UMask=0077", "LimitCORE=1"):
        assert line in _lines(name)


def test_each_daemon_finds_its_folder_after_a_reboot() -> None:
    assert "RuntimeDirectory=sandkeep/lab" in _lines(NAMES.runner)
    assert "RuntimeDirectory=sandkeep/lab/server" in _lines(NAMES.server)
    for name in DAEMONS:
        assert "RuntimeDirectoryPreserve=yes" in _lines(name)


def test_commands_use_the_interpreter_of_the_installation() -> None:
    command = "ExecStart=/opt/sandkeep/1/bin/python -m sandkeep.cli.main"
    assert f"{command} runner --instance lab" in _lines(NAMES.runner)
    assert f"{command} server --instance lab" in _lines(NAMES.server)
