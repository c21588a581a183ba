"""What programs and daemons are handed, and what they can no longer do: seen by themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandkeep.app import settings
from sandkeep.app.daemon import RUNNER_CAPABILITIES
from sandkeep.lib import privileges, process

pytestmark = pytest.mark.anyio


def _status(text: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


async def test_a_program_gets_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_SECRET", "hidden")
    monkeypatch.setenv("https_proxy", "http://proxy.invalid")
    done = await process.run(["env"], timeout=10)
    assert sorted(line.partition("=")[0] for line in done.stdout.splitlines()) == ["HOME", "LC_ALL", "PATH"]
    done = await process.run(["env"], timeout=10, env=process.clean_environment("https_proxy", "absent"))
    assert "https_proxy=http://proxy.invalid" in done.stdout
    assert "hidden" not in done.stdout


@pytest.mark.parametrize(("may_gain", "flag"), [(False, "1"), (True, "0")])
async def test_a_program_gains_nothing_unless_it_may(may_gain: bool, flag: str) -> None:
    ours = _status(Path("/proc/thread-self/status").read_text())["NoNewPrivs"]
    done = await process.run(["cat", "/proc/self/status"], timeout=10, may_gain=may_gain)
    assert _status(done.stdout)["NoNewPrivs"] == flag
    assert _status(Path("/proc/thread-self/status").read_text())["NoNewPrivs"] == ours == "0"


async def test_files_of_a_program_are_its_owners(tmp_path: Path) -> None:
    await process.run(["touch", str(tmp_path / "one")], timeout=10)
    await process.run(["touch", str(tmp_path / "other")], timeout=10, umask=0o022)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("one", "other")] == [0o600, 0o644]


def _changed(call: str) -> dict[str, str]:
    """The status of a process after it made this call."""
    code = f"from sandkeep.lib import privileges; {call}; print(open('/proc/self/status').read())"
    return _status(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_capabilities_that_are_not_kept_are_gone_for_good() -> None:
    before = int(_changed("pass")["CapBnd"], 16)
    kept = ("chown", "sys_admin", "syslog")
    status = _changed(f"privileges.keep_capabilities({kept})")
    wanted = before & sum(1 << privileges.CAPABILITIES.index(name) for name in kept)
    assert [int(status[f"Cap{kind}"], 16) for kind in ("Prm", "Eff", "Bnd")] == [wanted] * 3
    assert [int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Amb")] == [0, 0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_user_has_nothing() -> None:
    status = _changed("privileges.become(65534, 65533); privileges.never_gain()")
    assert (status["Uid"].split(), status["Gid"].split(), status["Groups"]) == (["65534"] * 4, ["65533"] * 4, "")
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert status["NoNewPrivs"] == "1"


def test_names_are_the_kernels() -> None:
    """Their order is their number."""
    numbers = {
        name: privileges.CAPABILITIES.index(name) for name in ("chown", "net_admin", "sys_admin", "syslog", "bpf")
    }
    assert numbers == {"chown": 0, "net_admin": 12, "sys_admin": 21, "syslog": 34, "bpf": 39}
    assert set(RUNNER_CAPABILITIES) < set(privileges.CAPABILITIES)
    assert not {"sys_module", "sys_rawio", "sys_time", "bpf", "perfmon", "mac_admin"} & set(RUNNER_CAPABILITIES)


def test_daemons_are_handed_places_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SANDKEEP_"):
            monkeypatch.delenv(name)
    for name in ("PORT", "DATA_FOLDER", "CONFIG_FOLDER", "KEY", "URL", "HTTP_PROXY", "DATABASE_URL", "UNKNOWN"):
        monkeypatch.setenv(f"SANDKEEP_{name}", "1")
    assert sorted(settings.handed_down()) == ["SANDKEEP_CONFIG_FOLDER", "SANDKEEP_DATA_FOLDER", "SANDKEEP_PORT"]


def test_settings_are_shown_without_passwords() -> None:
    found = settings.Settings(http_proxy="http://me:hush@proxy.invalid:3128", no_proxy="localhost")
    shown = settings.redacted(found)
    assert (shown["http_proxy"], shown["database_url"], shown["no_proxy"]) == ("(set)", "", "localhost")
    assert settings.secrets_of(found) == ["http://me:hush@proxy.invalid:3128", "hush"]
