"""What each process of ours may do on the host, and who may read what lies there: seen from outside, after real use."""

import json
import os
import pwd
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest

from sandkeep.app.daemon import RUNNER_CAPABILITIES
from sandkeep.lib.privileges import CAPABILITIES
from sandkeep.sdk import Client, Sandbox
from support.instance import Instance
from support.witness import machine_pids

SERVER_USER = pwd.getpwnam("sandkeep") if os.geteuid() == 0 else None
RUNNERS = sum(1 << CAPABILITIES.index(name) for name in RUNNER_CAPABILITIES)

OPEN_TO_OTHERS = {
    "data": (0o711, "the server passes through to its database"),
    "data/agents/*": (0o755, "every user of a machine sees the agent's folder"),
    "data/agents/*/agent": (0o555, "and the program, which is no secret"),
    "data/builds/*/runsc": (
        0o755,
        "as the installed one, since gVisor starts itself again as whom it likes; the folder is root's",
    ),
    "run": (0o711, "the server passes through to its own folder and to the runner's socket"),
    "run/runner.sock": (0o660, "the server's group, which has no member but its user, asks the runner"),
    "run/keeper.notify": (0o660, "and gives signs of life to the keeper"),
    "run/netns/*": (0o444, "a namespace, whose mode the kernel gives; the folder is root's"),
    "run/runsc/logs/*.panic": (0o644, "gVisor writes this and the next two, in folders that are root's alone"),
    "run/runsc/state/*.sock": (0o755, ""),
    "run/runsc/state/*.state": (0o640, ""),
    "run/runc/state/*": (0o711, "runc makes it, below a folder that is root's alone"),
    "etc": (0o755, "holds settings, which have modes of their own"),
    "etc/*.toml": (0o640, "the server reads its settings"),
}
"""Everything else is for its owner alone. Disks below the pool are the guests' own; only root enters the pool."""


@pytest.fixture
def used(client: Client, runtime: str) -> Sandbox:
    persistence = "full" if runtime == "gvisor" else "volume"
    return Sandbox.create(template="test", runtime=runtime, memory="256MiB", persistence=persistence, client=client)


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _daemon(instance: Instance, name: str) -> int:
    pid = instance.pid(name)
    assert pid
    return pid


def _resolver(instance: Instance) -> int:
    return int(json.loads((instance.root / "run/resolver.json").read_text())["pid"])


def _dumpable(pid: int, owner: int) -> bool:
    """proc(5): the files of a process that is not dumpable belong to root. Of a root process this does not tell."""
    return Path(f"/proc/{pid}/environ").stat().st_uid == owner


def _core_limit(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line.split()[4:6] for line in lines if line.startswith("Max core file size"))


def test_the_server_and_the_resolver_can_do_nothing(client: Client, instance: Instance) -> None:
    assert SERVER_USER
    for pid in (_daemon(instance, "server"), _resolver(instance)):
        status = _status(pid)
        assert status["Uid"].split() == [str(SERVER_USER.pw_uid)] * 4
        assert status["Gid"].split() == [str(SERVER_USER.pw_gid)] * 4
        assert status["Groups"] == ""
        assert [int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == [0] * 5
        assert status["NoNewPrivs"] == "1"
        assert status["Umask"] == "0077"
        assert not _dumpable(pid, SERVER_USER.pw_uid)
        assert _core_limit(pid) == ["1", "1"]


def test_the_server_has_open_its_database_and_sockets(client: Client, instance: Instance) -> None:
    pid = _daemon(instance, "server")
    found = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    files = {name for name in found if name.startswith("/") and not name.startswith("/dev/")}
    ours = {str(path) for path in (instance.root / "data/server").iterdir()}
    own = {str(instance.root / "log/server.log"), str(instance.root / "run/server/server.pid")}
    assert files <= ours | own
    kinds = {name.partition(":")[0] for name in found - files}
    assert kinds <= {"socket", "pipe", "anon_inode", "/dev/null"}


def test_the_servers_user_reads_nothing_of_the_node(used: Sandbox, instance: Instance) -> None:
    record = instance.root / f"data/node/sandboxes/{used.id}.json"
    assert used.exec("true").exit_code == 0
    private = ["data/pool", "data/pool.img", "data/node", "log/runner.log", "run/runsc", "run/runc", "run/netns"]
    paths = [str(record), *(str(instance.root / name) for name in private)]
    assert [path for path in paths if not os.path.exists(path)] == []
    script = (
        'for p; do if [ -d "$p" ]; then ls "$p"; else head -c 1 "$p"; fi >/dev/null 2>&1 && echo "$p"; done; exit 0'
    )
    done = subprocess.run(
        ["setpriv", "--reuid=sandkeep", "--regid=sandkeep", "--clear-groups", "sh", "-c", script, "sh", *paths],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    itself = str(instance.root / "data/server/sandkeep.db")
    done = subprocess.run(
        ["setpriv", "--reuid=sandkeep", "--regid=sandkeep", "--clear-groups", "sh", "-c", script, "sh", itself],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == itself  # so that the question can be answered with yes


def test_the_runner_keeps_what_it_uses(client: Client, instance: Instance) -> None:
    ours = int(_status(os.getpid())["CapBnd"], 16)  # a container may have fewer than there are
    for name in ("runner", "keeper"):
        status = _status(_daemon(instance, name))
        assert int(status["CapBnd"], 16) == RUNNERS & ours
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == RUNNERS & ours
        assert int(status["CapAmb"], 16) == int(status["CapInh"], 16) == 0
        assert status["Umask"] == "0077"
        assert _core_limit(_daemon(instance, name)) == ["1", "1"]


def test_machines_have_no_more_than_the_runner_and_sudo_works_inside(used: Sandbox, runtime: str) -> None:
    done = used.exec("sudo -n id -u")
    assert (done.stdout, done.stderr) == ("0\n", "")
    pids = machine_pids(used)
    assert pids
    for pid in pids:
        status = _status(pid)
        assert int(status["CapBnd"], 16) & ~RUNNERS == 0
        assert _core_limit(pid)[1] == "1"
        if runtime == "gvisor":
            assert status["NoNewPrivs"] == "1"


def test_a_runc_machine_has_neither_raw_sockets_nor_devices(client: Client) -> None:
    sandbox = Sandbox.create(template="test", runtime="runc", memory="256MiB", client=client)
    status = sandbox.exec("sudo -n cat /proc/self/status").stdout
    bounding = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd")), 16)
    for name in ("net_raw", "mknod", "sys_admin", "sys_ptrace", "dac_read_search", "net_admin", "syslog"):
        assert not bounding & 1 << CAPABILITIES.index(name), name


def test_nothing_of_an_instance_is_open_to_others(used: Sandbox, runtime: str, instance: Instance) -> None:
    done = used.exec("echo kept > file; sync")
    assert done.exit_code == 0
    assert "\n".join(_open_to_others(instance.root)) == ""
    if runtime == "gvisor":
        used.pause()
    else:
        used.stop()
    assert "\n".join(_open_to_others(instance.root)) == ""


def _open_to_others(root: Path) -> Iterator[str]:
    """What others than the owner may read, write or enter, and no line of the list allows; what has a wrong owner."""
    assert SERVER_USER
    for top in ("data", "run", "log", "etc", "xdg/sandkeep"):
        assert (root / top).is_dir()
        for folder, names, files in os.walk(root / top):
            for path in (Path(folder), *(Path(folder, name) for name in files)):
                found, name = path.lstat(), str(path.relative_to(root))
                mode = stat.S_IMODE(found.st_mode)
                allowed = next((allowed for line, (allowed, _) in OPEN_TO_OTHERS.items() if _matches(name, line)), None)
                if mode & 0o077 and mode != allowed and not stat.S_ISLNK(found.st_mode):
                    yield f"{name} {mode:o}"
                if found.st_uid != (SERVER_USER.pw_uid if name.startswith(("data/server", "run/server")) else 0):
                    yield f"{name} belongs to {found.st_uid}"
            guests = {str(root / "data/pool/templates"): names[:], "": ["disk"]}
            if folder.startswith(str(root / "data/pool")):
                names[:] = [name for name in names if name not in guests.get(folder, guests[""])]


def _matches(name: str, line: str) -> bool:
    return PurePath("/", name).match(f"/{line}")
