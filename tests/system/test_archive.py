"""Sandboxes that move to the object store and come back, on the real runtimes; and all that can go wrong on the way."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import Conflict, NotFound, SandkeepError, Unsupported
from support.instance import SMALLER, Instance, client_of, until
from support.s3 import S3, s3_server
from support.witness import events_of

COUNTER = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/n.new; mv /dev/shm/n.new /dev/shm/n; sleep 0.01; done"
FILL = """
set -e
mkdir -p /srv/many && cd /srv/many
for n in $(seq 300); do echo "file $n" > "f$n"; done
dd if=/dev/urandom of=large bs=64k count=80 status=none
truncate -s 50M holes && printf end >> holes
ln -s /etc/passwd link; ln large same; mkfifo pipe
install -m 4755 -o 1234 -g 1234 /bin/true owned
setfattr -n user.note -v kept large 2>/dev/null || true
printf odd > "$(printf 'n\\377me')"
mkdir -m 700 private && chown 4321 private
"""
SUMS = (
    "cd /srv/many && find . -printf '%p %y %m %U %G %l %T@\\n' | LC_ALL=C sort | sha256sum "
    "&& find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
)


def box(client: Client, runtime: str, **options: Any) -> Sandbox:
    return Sandbox.create(template="test", runtime=runtime, memory="192MiB", disk="512MiB", client=client, **options)  # type: ignore[arg-type]


def filled(sandbox: Sandbox) -> str:
    """What SUMS says of it; after a stop, since gVisor's times are its own until then."""
    said(sandbox, FILL)
    sandbox.stop()
    return said(sandbox, SUMS)


def said(sandbox: Sandbox, command: str) -> str:
    done = sandbox.exec(command, user="root")
    assert done.exit_code == 0, done.stderr
    return done.stdout.strip()


def store(instance: Instance) -> Path:
    return instance.root / "data/archive"


def home(instance: Instance, sandbox: Sandbox) -> Path:
    return store(instance) / "sandboxes" / sandbox.id


def in_pool(instance: Instance, sandbox: Sandbox) -> bool:
    return (instance.root / "data/pool/sandboxes" / sandbox.id).exists()


@contextmanager
def rotten(pieces: list[Path]) -> Iterator[None]:
    """Each keeps its size, and is whole again at the end."""
    assert pieces
    good = {path: path.read_bytes() for path in pieces}
    for path, data in good.items():
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    yield
    for path, data in good.items():
        path.write_bytes(data)


def test_there_and_back(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime, name="traveller", labels={"of": "mine"}, env={"TOKEN": "hush-hush-hush"})
    sums = filled(sandbox)
    sandbox.stop()
    sandbox.archive()
    assert (sandbox.phase, sandbox.labels) == ("archived", {"of": "mine"})
    assert not in_pool(instance, sandbox), "nothing of it takes room here"
    assert instance.fsck() == []
    for path in home(instance, sandbox).rglob("*"):
        if path.is_file():
            assert b"hush-hush-hush" not in path.read_bytes() and b"file 7" not in path.read_bytes()
    sandbox.wake()
    assert sandbox.phase == "stopped"
    assert said(sandbox, SUMS) == sums, "an exec starts it"
    assert said(sandbox, "echo $TOKEN") == "hush-hush-hush"
    before = set(home(instance, sandbox).rglob("*"))
    said(sandbox, "echo changed > /srv/many/f7")
    sandbox.stop()
    sums = said(sandbox, SUMS)
    sandbox.stop()
    with rotten([path for path in (home(instance, sandbox) / "pieces").iterdir() if path.stat().st_size > 1 << 20]):
        sandbox.archive()  # what was opened at the wake is not read back: it must lie there as large as it was
    fresh = [path for path in home(instance, sandbox).rglob("*") if path not in before and path.parent.name == "pieces"]
    assert 1 <= len(fresh) <= 24, "what did not change is not uploaded again"
    with pytest.raises(Conflict, match="archived"):
        sandbox.exec("true", no_resume=True)
    assert said(sandbox, SUMS) == sums, "a call brings it back and starts it"
    sandbox.delete()
    assert not home(instance, sandbox).exists()
    assert instance.fsck() == []


def test_memory_goes_on_after_the_archive(client: Client, instance: Instance) -> None:
    sandbox = box(client, "gvisor", name="thinker", persistence="full")
    said(sandbox, "echo kept > /root/file")
    sandbox.start_process(["sh", "-c", COUNTER], user="root").detach()
    until(lambda: int(said(sandbox, "cat /dev/shm/n 2>/dev/null || echo 0")))
    sandbox.pause()
    sandbox.archive()
    assert sandbox.phase == "archived"
    assert not in_pool(instance, sandbox)
    instance.kill("runner", "server")
    instance.ensure_up()
    sandbox.wake()
    assert (sandbox.phase, sandbox.hold) == ("paused", "disk")
    sandbox.resume()
    now = int(said(sandbox, "cat /dev/shm/n"))
    assert now > 1
    until(lambda: int(said(sandbox, "cat /dev/shm/n")) > now)
    sandbox.pause()
    sandbox.archive()
    assert int(said(sandbox, "cat /dev/shm/n")) > now, "an exec brings it back with its memory"
    sandbox.pause()
    sandbox.archive()
    sandbox.wake(disk_only=True)
    assert (sandbox.phase, sandbox.hold) == ("stopped", None)
    assert said(sandbox, "cat /root/file; ls /dev/shm") == "kept"
    assert instance.fsck() == []


@pytest.mark.long
def test_snapshots_stay_here(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime)
    said(sandbox, "echo then > /root/file")
    sandbox.snapshot("then")
    said(sandbox, "echo now > /root/file")
    sandbox.stop()
    sandbox.archive()
    instance.kill("runner")
    instance.ensure_up()
    fork = sandbox.fork(snapshot="then")[0]
    assert said(fork, "cat /root/file") == "then"
    assert said(sandbox, "cat /root/file") == "now"
    sandbox.rollback("then", keep_before=False)
    assert said(sandbox, "cat /root/file") == "then"
    assert instance.fsck() == []


def test_what_cannot_be_archived_says_why(client: Client, runtime: str) -> None:
    sandbox = box(client, runtime, name="busy")
    with pytest.raises(Conflict, match="stopped") as running:
        sandbox.archive()
    assert "sandkeep stop busy" in (running.value.hint or "")
    brief = box(client, runtime, persistence="ephemeral")
    with pytest.raises(Unsupported, match="ephemeral"):
        brief.archive()
    brief.delete()


def _damages(path: Path) -> Iterator[tuple[str, bytes]]:
    data = path.read_bytes()
    middle = len(data) // 2
    yield "a flipped bit", data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]
    yield "cut", data[:-7]
    yield "empty", b""


@pytest.mark.long
def test_every_damaged_object_is_refused_before_anything_runs(client: Client, instance: Instance) -> None:
    sandbox = box(client, "gvisor", name="fragile", persistence="full")
    other = box(client, "gvisor")
    said(sandbox, "echo kept > /root/file")
    sandbox.pause()
    for one in (sandbox, other):
        if one is other:
            one.stop()
        one.archive()
    manifest = next((home(instance, sandbox) / "manifests").iterdir())
    pieces = sorted((home(instance, sandbox) / "pieces").iterdir())
    assert len(pieces) > 10
    for path in (manifest, pieces[0], pieces[len(pieces) // 2]):
        good = path.read_bytes()
        swaps = [("another's", next((home(instance, other) / path.parent.name).iterdir()).read_bytes())]
        for what, data in [*_damages(path), *swaps]:
            path.write_bytes(data)
            with pytest.raises(Conflict, match="refused") as refused:
                sandbox.wake()
            assert "--disk-only" in (refused.value.hint or ""), what
            sandbox.refresh()
            assert sandbox.phase == "archived", what
            assert not in_pool(instance, sandbox), what
        path.unlink()
        with pytest.raises(Conflict, match="refused"):
            sandbox.exec("true")
        path.write_bytes(good)
    first = manifest.read_bytes()
    sandbox.wake()
    sandbox.resume()
    said(sandbox, "echo later > /root/file")
    sandbox.pause()
    sandbox.archive()
    newest = next((home(instance, sandbox) / "manifests").iterdir())
    good = newest.read_bytes()
    assert newest.name != manifest.name
    newest.write_bytes(first)
    with pytest.raises(Conflict, match="of its chain"):
        sandbox.wake()
    newest.write_bytes(good)
    assert said(sandbox, "cat /root/file") == "later"
    assert instance.fsck() == []


@pytest.mark.long
def test_without_its_key_it_is_noise(client: Client, instance: Instance) -> None:
    sandbox = box(client, "runc")
    sandbox.stop()
    sandbox.archive()
    keys = instance.root / "data/node/keys"
    assert {path.stat().st_mode & 0o777 for path in keys.iterdir()} == {0o600}
    for path in sorted(keys.iterdir()):
        good = path.read_bytes()
        path.write_bytes(os.urandom(32))
        with pytest.raises(Conflict, match="key"):
            sandbox.wake()
        path.write_bytes(good)
    sandbox.wake()
    assert said(sandbox, "echo here") == "here"


@pytest.mark.long
def test_a_kill_in_the_middle_loses_nothing(client: Client, instance: Instance, runtime: str) -> None:
    """Wherever it comes: it is here, or it is archived, and either way whole."""
    sandbox = box(client, runtime)
    sums = filled(sandbox)
    for after in (0.0, 0.3, 0.8):
        for verb in ("archive", "wake"):
            sandbox.refresh()
            if verb == "archive" and sandbox.phase == "running":
                sandbox.stop()

            def act(verb: str = verb) -> None:
                try:
                    getattr(Sandbox.get(sandbox.id, client=client), verb)()
                except SandkeepError:
                    return

            thread = threading.Thread(target=act)
            thread.start()
            time.sleep(after)
            instance.kill("runner", "server") if verb == "archive" else instance.kill("runner")
            instance.ensure_up()
            thread.join()
            sandbox.wait("archived", "stopped", timeout=60)
            assert instance.fsck() == []
    assert said(sandbox, SUMS) == sums
    assert not [entry for entry in os.listdir("/proc") if entry.isdigit() and _is_packer(entry, instance)]


def _is_packer(pid: str, instance: Instance) -> bool:
    try:
        return "sandkeep.engine.archive" in Path(f"/proc/{pid}/cmdline").read_text() and _child_of(pid, instance)
    except OSError:
        return False


def _child_of(pid: str, instance: Instance) -> bool:
    parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    return int(parent) in (instance.pid("runner"), 1)


@pytest.mark.parametrize("runtime", ["runc", pytest.param("gvisor", marks=pytest.mark.long)])
def test_the_command_line(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime, name="tool")
    said(sandbox, "echo kept > /root/file")
    instance.run("stop", "tool")
    assert instance.run("archive", "tool").stdout == "tool is archived\n"
    shown = instance.run("show", "tool").stdout
    assert "archived and read back" in shown
    assert "sandkeep wake tool" in instance.run("why", "tool").stdout
    assert "tool is intact" in instance.run("archive", "--verify", "tool").stdout
    piece = max((home(instance, sandbox) / "pieces").iterdir())
    good = piece.read_bytes()
    piece.write_bytes(good[:-1])
    told = instance.run("archive", "--verify", "tool", check=False)
    assert told.returncode == 1 and piece.name[:16] in told.stdout
    assert "ArchiveDamaged" in instance.run("why", "tool").stdout
    piece.write_bytes(good)
    instance.run("archive", "--verify", "tool")
    assert "ArchiveDamaged" not in instance.run("why", "tool").stdout
    assert json.loads(instance.run("wake", "tool", "--json").stdout)["phase"] == "stopped"
    assert "tool" in instance.run("list", "--phase", "stopped").stdout
    assert instance.run("archive", "tool", "missing", check=False).returncode == 3
    sandbox.delete()


def generations(instance: Instance, sandbox: Sandbox) -> int:
    folder = instance.root / "data/pool/sandboxes" / sandbox.id / "generations"
    return len(list(folder.iterdir())) if folder.exists() else 0


@pytest.mark.parametrize("runtime", ["gvisor", pytest.param("runc", marks=pytest.mark.long)])
def test_snapshots_move_for_themselves(client: Client, instance: Instance, runtime: str) -> None:
    """While the sandbox runs; with memory where there is some."""
    full = runtime == "gvisor"
    sandbox = box(client, runtime, name="shelf", persistence="full" if full else "volume")
    said(sandbox, f"{SMALLER}; head -c 3000000 /dev/urandom > /root/same; echo first > /root/file")
    if full:
        sandbox.start_process(["sh", "-c", COUNTER], user="root").detach()
        until(lambda: int(said(sandbox, "cat /dev/shm/n 2>/dev/null || echo 0")))
    sandbox.snapshot("first", kind="full" if full else "disk")
    said(sandbox, "echo second > /root/file")
    sandbox.snapshot("second")
    assert "first is archived" in instance.run("archive", "shelf@first").stdout
    first = {path.name for path in (home(instance, sandbox) / "pieces").iterdir()}
    view = sandbox.snapshots.archive("second")
    assert view.archived and sandbox.snapshots.get("second").archived == view.archived
    fresh = {path.name for path in (home(instance, sandbox) / "pieces").iterdir()} - first
    assert len(fresh) < 24, "what is the same is there already"
    assert generations(instance, sandbox) == 0, "they take nothing here"
    assert "archived" in instance.run("snapshot", "list", "shelf").stdout
    with pytest.raises(Conflict, match="archived") as away:
        sandbox.rollback("first")
    assert "sandkeep wake shelf@first" in (away.value.hint or "")
    instance.kill("runner", "server")
    instance.ensure_up()
    assert said(sandbox, "cat /root/file") == "second", "it ran on"
    assert instance.fsck() == []
    assert instance.run("wake", "shelf@first").stdout == "shelf@first is here\n"
    sandbox.rollback("first", keep_before=False)
    assert said(sandbox, "cat /root/file") == "first"
    if full:
        now = int(said(sandbox, "cat /dev/shm/n"))
        until(lambda: int(said(sandbox, "cat /dev/shm/n")) > now)
    sandbox.snapshots.delete("first")
    assert len(list((home(instance, sandbox) / "snapshots").iterdir())) == 1
    sandbox.stop()
    sandbox.archive()
    sandbox.snapshots.wake("second")
    assert said(sandbox.fork(snapshot="second")[0], "cat /root/file") == "second", "it needed no piece of the other"
    sandbox.delete()
    assert not home(instance, sandbox).exists()
    assert instance.fsck() == []


@pytest.fixture(scope="module")
def in_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Instance, S3]]:
    folder = tmp_path_factory.mktemp("s3")
    with s3_server(folder / "served") as server:
        options = folder / "options.toml"
        options.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in server.options.items()))
        options.chmod(0o600)
        with Instance.made(
            "test",
            SANDKEEP_ARCHIVE_URL=f"{server.url}/kept",
            SANDKEEP_ARCHIVE_OPTIONS=str(options),
            SANDKEEP_ARCHIVE_VERIFY_EVERY="1s",
        ) as made:
            yield made, server


def test_in_an_object_store(in_s3: tuple[Instance, S3]) -> None:
    instance, server = in_s3
    with client_of(instance) as client:
        _there_and_back(client, instance, server)


def _there_and_back(client: Client, instance: Instance, server: S3) -> None:
    sandbox = box(client, "runc")
    sums = filled(sandbox)
    sandbox.stop()
    sandbox.archive()
    assert not in_pool(instance, sandbox)
    until(lambda: "archive.rehearsed" in events_of(client, sandbox.id), 60)
    objects = server.folder / "kept/sandboxes" / sandbox.id
    assert len(list(objects.rglob("*"))) > 5
    assert said(sandbox, SUMS) == sums
    sandbox.stop()
    away = server.folder.with_name("away")
    shutil.move(server.folder, away)
    with pytest.raises(SandkeepError):
        sandbox.archive()
    sandbox.refresh()
    assert sandbox.phase == "stopped", "it is as it was"
    shutil.move(away, server.folder)
    assert said(sandbox, SUMS) == sums
    sandbox.delete()
    assert not [path for path in objects.rglob("*") if path.is_file()]
    with pytest.raises(NotFound):
        sandbox.refresh()
    assert instance.fsck() == []


@pytest.mark.long
def test_a_store_that_does_not_answer(tmp_path: Path) -> None:
    with (
        Instance.made(
            "test",
            SANDKEEP_ARCHIVE_URL="s3://nowhere",
            SANDKEEP_ARCHIVE_OPTIONS=str(_options(tmp_path)),
        ) as instance,
        client_of(instance) as client,
    ):
        sandbox = box(client, "runc", name="stays")
        said(sandbox, "echo kept > /root/file")
        sandbox.stop()
        told = instance.run("archive", "stays", check=False)
        assert told.returncode == 7 and "object store s3://nowhere" in told.stderr
        assert "hush" not in told.stderr
        sandbox.refresh()
        assert sandbox.phase == "stopped"
        assert said(sandbox, "cat /root/file") == "kept"


def _options(folder: Path) -> Path:
    path = folder / "options.toml"
    path.write_text(
        'endpoint = "http://127.0.0.1:9"\nregion = "local"\naccess_key_id = "a"\nsecret_access_key = "hush"\n'
    )
    path.chmod(0o600)
    return path
