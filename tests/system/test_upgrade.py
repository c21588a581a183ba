"""A newer version takes over from an older one, with other agents and another gVisor, and the older one is refused then.

The newer version is the installed one, copied into a virtual environment of its own, with a higher number and an agent
that has other bytes; the newer gVisor is the same program with other bytes, so another build."""

import hashlib
import json
import os
import re
import shutil
import sysconfig
import tempfile
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import sandkeep
from sandkeep.sdk import Client, Sandbox
from support.instance import Instance, client_of, until
from support.machines import program
from support.witness import ask, machine_pids, settled_fsck, start_witness, ticks_go_on

pytestmark = pytest.mark.requires("gvisor", "runc", "btrfs")

NEWER = "0.99.0"


@dataclass(frozen=True)
class Version:
    """agent: name of its folder."""

    python: str
    number: str
    agent: str


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _older(instance: Instance) -> Version:
    agent = next(Path(sandkeep.__file__).parent.glob("_agents/linux-*/agent"))
    return Version(instance.python, sandkeep.__version__, _digest(agent))


def _newer(folder: Path) -> Version:
    """What they depend on is that of the tests."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    shutil.copytree(Path(sandkeep.__file__).parent, site / "sandkeep")
    (site / "rest.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    front = site / "sandkeep/__init__.py"
    front.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{NEWER}"', front.read_text()))
    (site / "sandkeep/_build").write_text("another build\n")
    agent = next(site.glob("sandkeep/_agents/linux-*/agent"))
    agent.write_bytes(agent.read_bytes() + b"newer")
    return Version(str(folder / "bin/python"), NEWER, _digest(agent))


@pytest.fixture
def gvisor() -> Iterator[Path]:
    """The instance's own runsc, which a test may replace."""
    folder = Path(tempfile.mkdtemp(prefix="sandkeep-upgrade-", dir="/var/tmp"))
    folder.chmod(0o755)
    shutil.copyfile(program("runsc"), folder / "runsc")
    (folder / "runsc").chmod(0o755)
    yield folder / "runsc"
    shutil.rmtree(folder)


@pytest.fixture
def upgraded(gvisor: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    """An instance of the older version; its agent is the one in the package."""
    monkeypatch.delenv("SANDKEEP_AGENT", raising=False)
    with Instance.made("test", SANDKEEP_RUNSC=str(gvisor)) as made:
        yield made


def _replace(binary: Path) -> None:
    fresh = binary.with_name("fresh")
    fresh.write_bytes(binary.read_bytes() + b"newer")
    fresh.chmod(0o755)
    fresh.rename(binary)


def _create(client: Client, runtime: str = "gvisor") -> Sandbox:
    persistence = "full" if runtime == "gvisor" else "volume"
    return Sandbox.create(template="test", runtime=runtime, memory="256MiB", persistence=persistence, client=client)


def _agent(sandbox: Sandbox) -> str:
    """Seen from inside."""
    return sandbox.exec(["sha256sum", "/.sandkeep/agent"]).stdout.split()[0]


def _build(sandbox: Sandbox) -> str:
    """Of the gVisor that runs it, as the kernel knows."""
    programs = {path for pid in machine_pids(sandbox) if "runsc" in (path := os.readlink(f"/proc/{pid}/exe"))}
    pid = next(pid for pid in machine_pids(sandbox) if os.readlink(f"/proc/{pid}/exe") in programs)
    return _digest(Path(f"/proc/{pid}/exe"))


def _installed(instance: Instance) -> tuple[set[str], set[str]]:
    """Agents and builds of gVisor on the node."""
    data = instance.root / "data"
    return {path.parent.name for path in data.glob("agents/*/agent")}, {
        path.parent.name for path in data.glob("builds/*/runsc")
    }


def _versions(instance: Instance) -> tuple[str, str]:
    saved = instance.config
    request = urllib.request.Request(saved["url"] + "/v1/version", headers={"authorization": f"Bearer {saved['key']}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        found = json.loads(answer.read())
    return found["version"], found["runner"]


def test_what_runs_and_what_is_paused_goes_on_under_a_newer_version(
    upgraded: Instance, gvisor: Path, tmp_path: Path
) -> None:
    instance, old_build = upgraded, _digest(gvisor)
    folder = gvisor.parent / "newer"
    old, new = _older(instance), _newer(folder)
    with client_of(instance) as client:
        running = {runtime: _create(client, runtime) for runtime in ("gvisor", "runc")}
        paused, held = _create(client), _create(client)
        everything = [*running.values(), paused, held]
        for sandbox in everything:
            start_witness(sandbox)
        before = {sandbox.id: ask(sandbox) for sandbox in everything}
        pids = {runtime: machine_pids(sandbox) for runtime, sandbox in running.items()}
        paused.pause()
        held.pause(hold="memory")
        assert _installed(instance) == ({old.agent}, {old_build})

        _replace(gvisor)
        new_build = _digest(gvisor)
        instance.python = new.python
        said = instance.run("up").stderr
        assert "another build was installed" in said
        until(lambda: _versions(instance) == (NEWER, NEWER))

        # What ran did not notice: the same processes, which counted on.
        for runtime, sandbox in running.items():
            assert machine_pids(sandbox) >= pids[runtime]
            after = ask(sandbox)
            assert (after["pid"], after["inode"]) == (before[sandbox.id]["pid"], before[sandbox.id]["inode"])
            assert after["ticks"] > before[sandbox.id]["ticks"]
            ticks_go_on(sandbox)
            assert _agent(sandbox) == old.agent
        held.resume()
        paused.resume()
        for sandbox in (held, paused):
            assert ask(sandbox)["pid"] == before[sandbox.id]["pid"]
            assert _agent(sandbox) == old.agent
            assert _build(sandbox) == old_build
            ticks_go_on(sandbox)

        # A second pause under the new version still is one of the old gVisor; so is that of what never slept.
        for sandbox in (paused, running["gvisor"]):
            sandbox.pause()
        assert _installed(instance) == ({old.agent, new.agent}, {old_build})
        instance.kill("runner")
        instance.run("up")
        for sandbox in (paused, running["gvisor"]):
            sandbox.resume()
            assert ask(sandbox)["pid"] == before[sandbox.id]["pid"]
            assert (_agent(sandbox), _build(sandbox)) == (old.agent, old_build)
        assert _installed(instance) == ({old.agent, new.agent}, {old_build})

        # What is made or started now has what is new.
        fresh = _create(client)
        running["gvisor"].stop()
        running["gvisor"].start()
        for sandbox in (fresh, running["gvisor"]):
            assert (_agent(sandbox), _build(sandbox)) == (new.agent, new_build)
        start_witness(fresh)
        told = ask(fresh)["pid"]
        fresh.pause()

        # What nobody needs any more goes when the runner starts.
        for sandbox in (running["runc"], held, paused):
            sandbox.delete()
        instance.kill("runner")
        instance.run("up")
        until(lambda: _installed(instance) == ({new.agent}, {new_build}))
        fresh.resume()
        assert ask(fresh)["pid"] == told

        # The older version refuses, with words, and changes nothing.
        daemons = [instance.pid(name) for name in ("keeper", "server", "runner")]
        instance.python = old.python
        for verb in ("up", "setup"):
            refused = instance.run(verb, check=False)
            assert refused.returncode
            assert f"was written by Sandkeep {NEWER}, newer than this {old.number}" in refused.stderr
            assert f"install {NEWER} or a newer one" in refused.stderr
        assert [instance.pid(name) for name in ("keeper", "server", "runner")] == daemons
        ticks_go_on(fresh)
        instance.python = new.python
        settled_fsck(instance)
