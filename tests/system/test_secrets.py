"""Unique secrets in every place where one can go, and a search of every place where they must not be."""

import contextlib
import json
import os
import re
import secrets
import signal
import stat
import subprocess
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import SandkeepError
from support.instance import Instance, client_of, until
from support.witness import machine_pids, settled_fsck

ALLOWED = {
    "environment": ("data/node/sandboxes/*.json", "data/server/*"),  # a start needs it; both are for their owner alone
    "token": ("data/node/sandboxes/*.json",),
    "key": ("xdg/sandkeep/config.json",),
    "proxy": ("etc/*.toml",),
    "exec environment": (),
    "stdin": (),
    "caller": (),
    "caller's key": (),
    "refused": (),
}
"""Secret -> the only files of an instance that may hold it, beside the sandbox's own disk and memory."""


@dataclass
class Planted:
    instance: Instance
    client: Client
    secrets: dict[str, str]
    holders: list[Sandbox]
    neighbour: Sandbox
    told: list[str]
    """What callers were answered."""


WATCHDOG = ("NOTIFY_SOCKET", "WATCHDOG_USEC")


def _fresh(name: str) -> str:
    return f"canary{name.replace(' ', '').replace(chr(39), '')}{secrets.token_hex(12)}"


@pytest.fixture(scope="module")
def planted() -> Iterator[Planted]:
    """A sandbox of each runtime was given secrets, and used; a neighbour was not; daemons died and came back."""
    known = {name: _fresh(name) for name in ALLOWED if name not in ("token", "key")}
    caller = {
        "SANDKEEP_HTTP_PROXY": f"http://somebody:{known['proxy']}@proxy.invalid:3128",
        "SANDKEEP_KEY": known["caller's key"],
        "CLOUD_SECRET": known["caller"],
    }
    with Instance.made("test", **caller) as instance, client_of(instance) as client:
        instance.env.pop("SANDKEEP_KEY")
        known["key"] = instance.config["key"]
        told: list[str] = []
        holders = []
        for runtime, persistence in (("gvisor", "full"), ("runc", "volume")):
            env = {"SECRET": known["environment"]}
            sandbox = Sandbox.create(
                template="test", runtime=runtime, persistence=persistence, memory="256MiB", env=env, client=client
            )
            holders.append(sandbox)
            with_secret = {"GIVEN": known["exec environment"]}
            script = 'test -n "$GIVEN" && test -n "$SECRET" && cat > /dev/shm/stdin && tail -c 2 /dev/shm/stdin'
            done = sandbox.exec(script, env=with_secret, stdin=f"{known['stdin']}ok")
            assert done.stdout == "ok", done.stderr
            held = sandbox.start_process("sleep 1000", env=with_secret, stdin=True)
            held.write(known["stdin"])
            held.detach()
            told += _mistakes(client, sandbox, known["refused"])
        record = instance.root / f"data/node/sandboxes/{holders[0].id}.json"
        known["token"] = json.loads(record.read_text())["token"]
        neighbour = Sandbox.create(
            template="test", persistence="full", memory="256MiB", env={"OWN": _fresh("own")}, client=client
        )
        neighbour.exec("true")
        neighbour.pause()
        holders[0].pause()
        holders[0].resume()
        _abort_daemons(instance)
        for sandbox in holders:
            assert sandbox.exec("true", env={"GIVEN": known["exec environment"]}).exit_code == 0
        settled_fsck(instance)
        yield Planted(instance, client, known, holders, neighbour, told)


def _mistakes(client: Client, sandbox: Sandbox, secret: str) -> list[str]:
    """Requests that are refused for what stands in them. Returns the answers."""
    told = []
    for env in ({"NUL": f"{secret}\0"}, {f"{secret} =": "x"}, {"LONG": secret * 20000}):
        with pytest.raises(SandkeepError) as refused:
            sandbox.exec("true", env=env)
        if secret not in str(list(env)):  # a name is no secret, and helps to find the mistake
            told.append(str(refused.value))
    for path, header in (("/v1/sandboxes", f"Bearer {secret}"), ("/v1/node", secret)):
        with pytest.raises(urllib.error.HTTPError) as unknown:
            urllib.request.urlopen(_asked(client, path, header), timeout=10)
        told.append(unknown.value.read().decode())
    return told


def _asked(client: Client, path: str, header: str) -> urllib.request.Request:
    return urllib.request.Request(client.url + path, headers={"authorization": header})


def _abort_daemons(instance: Instance) -> None:
    """As a crash does it: with a signal that writes a core, where one may be written."""
    for daemon in ("server", "runner"):
        pid = instance.pid(daemon)
        assert pid
        os.kill(pid, signal.SIGABRT)
        until(lambda pid=pid: not Path(f"/proc/{pid}/exe").exists())
    until(instance._answers, 30)


def _files(root: Path) -> Iterator[tuple[str, bytes]]:
    """(relative path, content) of every file outside of the pool."""
    for top in ("data", "run", "log", "etc", "xdg"):
        for folder, names, files in os.walk(root / top):
            names[:] = [name for name in names if Path(folder, name) not in (root / "data/pool", root / "run/netns")]
            for path in (Path(folder, name) for name in files):
                with contextlib.suppress(FileNotFoundError):
                    if stat.S_ISREG(path.lstat().st_mode) and path.name not in ("pool.img", "agent"):
                        yield str(path.relative_to(root)), path.read_bytes()


def _places(found: Iterable[tuple[str, bytes]], secret: str) -> set[str]:
    return {name for name, content in found if secret.encode() in content}


def test_secrets_are_in_no_file_that_is_not_named(planted: Planted) -> None:
    files = list(_files(planted.instance.root))
    for name, secret in planted.secrets.items():
        allowed = ALLOWED[name]
        places = _places(files, secret)
        wrong = {place for place in places if not any(PurePath("/", place).match(f"/{line}") for line in allowed)}
        assert wrong == set(), name
        assert places or not allowed, f"{name} is nowhere: the search cannot find it"


def _processes() -> Iterator[tuple[int, bytes, bytes]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(folder.name), (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()


def test_secrets_are_in_no_command_line_and_in_no_environment_but_that_of_their_own(planted: Planted) -> None:
    """In a runc machine, what was given a secret in its environment is a process of this host and has it there."""
    gvisor, runc = planted.holders
    inside = machine_pids(runc)
    init = json.loads(next((planted.instance.root / "run/runc/state").glob("*/state.json")).read_text())
    first = int(init["init_process_pid"])
    ours = {planted.instance.pid(name) for name in ("server", "runner", "keeper")} | machine_pids(gvisor)
    seen, held = set(), set()
    for pid, argv, environ in _processes():
        seen.add(pid)
        for name, secret in planted.secrets.items():
            assert secret.encode() not in argv, (name, pid, argv)
            if secret.encode() in environ:
                assert pid in inside - {first}, (name, pid, argv)
                held.add(name)
    assert ours | {first} <= seen
    assert held >= {"environment", "exec environment"}, "the search cannot find them"


def test_a_daemons_environment_is_a_list(planted: Planted) -> None:
    """PATH and the like, and where the instance is."""
    for name in ("keeper", "runner", "server"):
        text = Path(f"/proc/{planted.instance.pid(name)}/environ").read_bytes().decode()
        names = {line.partition("=")[0] for line in text.split("\0") if line}
        assert {name for name in names if not name.startswith("SANDKEEP_")} <= {"PATH", "HOME", "LC_ALL", *WATCHDOG}
        assert "SANDKEEP_DATA_FOLDER" in names
        assert not names & {"SANDKEEP_KEY", "SANDKEEP_URL", "SANDKEEP_HTTP_PROXY"}


def test_a_neighbours_memory_image_has_its_own_secrets_alone(planted: Planted) -> None:
    folder = planted.instance.root / f"data/pool/sandboxes/{planted.neighbour.id}/generations"
    images = [(path.name, path.read_bytes()) for path in folder.glob("*/memory/*")]
    assert {"checkpoint.img", "pages.img"} <= {name for name, _ in images}
    record = json.loads((planted.instance.root / f"data/node/sandboxes/{planted.neighbour.id}.json").read_text())
    assert _places(images, record["token"]), "the search cannot find what is there"
    known = {name: secret for name, secret in planted.secrets.items() if name != "proxy"}  # which every guest is told
    assert {name for name, secret in known.items() if _places(images, secret)} == set()


def test_no_daemon_has_left_a_core(planted: Planted) -> None:
    """They were ended by SIGABRT, in the root folder."""
    places = [Path("/"), *(planted.instance.root / name for name in ("data", "run", "run/server", "log"))]
    assert [str(path) for place in places for path in place.glob("core*")] == []


def test_nobody_is_told_a_secret(planted: Planted) -> None:
    instance, holder = planted.instance, planted.holders[0]
    answers = {
        "events": json.dumps([event.model_dump(mode="json") for event in planted.client.events()]),
        "errors": "\n".join(planted.told),
        "why": instance.run("why", holder.id).stdout,
        "list": instance.run("list").stdout,
        "logs": instance.run("logs", holder.id).stdout,
        "doctor": instance.run("doctor", "--json", check=False).stdout,
        "fsck": instance.run("fsck", "--json", check=False).stdout,
        "keys": instance.run("key", "list", "--json").stdout,
        "node": json.dumps(planted.client.node().model_dump(mode="json")),
    }
    with urllib.request.urlopen(
        _asked(planted.client, "/metrics", f"Bearer {planted.secrets['key']}"), timeout=10
    ) as metrics:
        answers["metrics"] = metrics.read().decode()
    assert holder.id in answers["events"]
    assert "sandkeep_http_requests_total" in answers["metrics"]
    for name, secret in planted.secrets.items():
        assert [answer for answer, text in answers.items() if secret in text] == [], name


@pytest.mark.parametrize("daemons", ["up", "dead"])
def test_a_support_bundle_has_all_but_secrets(planted: Planted, daemons: str, tmp_path: Path) -> None:
    instance, target = planted.instance, tmp_path / "bundle.tar.gz"
    with open(instance.root / "log/server.log", "a") as log:  # as if a fault of ours had written it there
        log.write(f"leaked {planted.secrets['environment']} {planted.secrets['proxy']}\n")
    if daemons == "dead":
        instance.run("down")
    try:
        made = json.loads(instance.run("support-bundle", "-o", str(target), "--json").stdout)
        again = instance.run("support-bundle", "-o", str(target), check=False)
    finally:
        instance.ensure_up()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert (again.returncode, "is there already" in again.stderr) == (5, True)
    with tarfile.open(target) as archive:
        members = {member.name.partition("/")[2]: archive.extractfile(member) for member in archive}
        texts = {name: file.read().decode() for name, file in members.items() if file}
    missing = {"events.json"} if daemons == "dead" else set()
    wanted = {"versions", "settings", "doctor", "fsck", "records", "journal", "host", "events", "problems"}
    logs = {"logs/runner.log", "logs/server.log", "logs/keeper.log", "logs/resolver.log"}
    assert set(texts) == {f"{name}.json" for name in wanted} - missing | logs
    assert {item["name"] for item in made["problems"]} == missing
    assert {item["name"]: item["size"] for item in made["contents"]} == {n: len(t.encode()) for n, t in texts.items()}
    assert "leaked (redacted) (redacted)" in texts["logs/server.log"]
    assert os.uname().release in texts["versions.json"]
    assert json.loads(texts["settings.json"])["http_proxy"] == "(set)"
    told = {item["sandbox"]["id"]: item for item in json.loads(texts["records.json"])["sandboxes"]}
    assert told[planted.holders[0].id]["sandbox"]["spec"]["env"] == ["SECRET"]
    for name, secret in planted.secrets.items():
        assert [place for place, text in texts.items() if secret in text] == [], name


def test_a_support_bundle_says_what_is_in_it(planted: Planted, tmp_path: Path) -> None:
    done = planted.instance.run("support-bundle", cwd=tmp_path)
    made = re.findall(r"wrote (\S+)", done.stdout)
    assert [Path(path).exists() for path in made] == [True]
    assert Path(made[0]).parent == tmp_path
    listed = subprocess.run(["tar", "-tzf", made[0]], capture_output=True, text=True, check=True).stdout.split()
    assert all(name.partition("/")[2] in done.stdout for name in listed)
