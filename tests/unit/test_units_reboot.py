"""systemd units: what keeps sandboxes alive when a daemon ends, and what the daemons find after a reboot."""

from pathlib import Path

from sandkeep.app.units import UnitFacts, unit_names, units

FACTS = UnitFacts("lab", Path("/opt/sandkeep/1/bin/python"), "keeper", ("chown", "sys_admin"))


def _lines(name: str) -> list[str]:
    return units(FACTS)[name].splitlines()


def test_a_daemon_that_ends_ends_no_sandbox() -> None:
    runner, server, slice_name = unit_names("lab")
    assert set(units(FACTS)) == {runner, server, slice_name}
    for line in ("KillMode=process", "Restart=always"):
        assert line in _lines(runner)
        assert line in _lines(server)
    assert "Delegate=yes" in _lines(runner)
    assert f"Slice={slice_name}" in _lines(runner)


def test_the_server_is_unprivileged() -> None:
    _, server, _ = unit_names("lab")
    for line in (
        "User=keeper",
        "Group=keeper",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
    ):
        assert line in _lines(server)


def test_the_runner_keeps_what_it_uses_and_lets_runc_machines_gain() -> None:
    runner, _, _ = unit_names("lab")
    assert "CapabilityBoundingSet=CAP_CHOWN CAP_SYS_ADMIN" in _lines(runner)
    assert "NoNewPrivileges=yes" not in _lines(runner)


def test_daemons_leave_no_trace() -> None:
    for name in unit_names("lab")[:2]:
        for line in ("UMask=0077", "LimitCORE=1"):
            assert line in _lines(name)


def test_each_daemon_finds_its_folder_after_a_reboot() -> None:
    runner, server, _ = unit_names("lab")
    assert "RuntimeDirectory=sandkeep/lab" in _lines(runner)
    assert "RuntimeDirectory=sandkeep/lab/server" in _lines(server)
    for name in (runner, server):
        assert "RuntimeDirectoryPreserve=yes" in _lines(name)


def test_commands_use_the_interpreter_of_the_installation() -> None:
    runner, server, _ = unit_names("lab")
    command = "ExecStart=/opt/sandkeep/1/bin/python -m sandkeep.cli.main"
    assert f"{command} runner --instance lab" in _lines(runner)
    assert f"{command} server --instance lab" in _lines(server)
