"""What survives when the machine goes: nothing, the disk, or disk, memory and processes."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import NotFound, SandkeepError, Unsupported
from support.instance import Instance, until
from support.witness import ask, events_of, machine_pids, read_ticks, start_witness

FURNISH = r"""
set -e
mkdir -p /srv/proof/sub && cd /srv/proof
echo content > file && ln -s file link && ln -s /nowhere dangling
truncate -s 1G sparse && printf end | dd of=sparse bs=1 seek=900000000 conv=notrunc status=none
chown 1234:5678 file && chmod 4751 file && chown -h 7:8 link
ln file hardlink  # last: gVisor shows what one name of a file was given at its other names only after a restart
find . -exec touch -h -d 2001-02-03T04:05:06.789Z {} +  # the time of a mere write gVisor and the disk know to a few ms
mkdir -p /tmp/pkg/DEBIAN /tmp/pkg/usr/bin
printf 'Package: proof\nVersion: 1.2\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: proof\n' > /tmp/pkg/DEBIAN/control
printf '#!/bin/sh\necho installed\n' > /tmp/pkg/usr/bin/proof && chmod 755 /tmp/pkg/usr/bin/proof
dpkg-deb --build /tmp/pkg /tmp/proof.deb >/dev/null && dpkg -i /tmp/proof.deb >/dev/null
"""

ATTRIBUTES = """
import os
os.setxattr("/srv/proof/file", "user.colour", b"green")
os.setxattr("/srv/proof/sub", "user.depth", bytes(2))
"""

INVENTORY = r"""
import errno, hashlib, json, os
found = {}
def attributes(path):
    try:
        return sorted(os.listxattr(path))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []
for folder, folders, files in os.walk("/srv/proof"):
    for name in [".", *folders, *files]:
        path = os.path.join(folder, name)
        s = os.lstat(path)
        kept = [oct(s.st_mode), s.st_uid, s.st_gid, s.st_mtime_ns]
        if not os.path.isdir(path):
            kept += [s.st_nlink, s.st_size]
        if os.path.islink(path):
            kept.append(os.readlink(path))
        else:
            kept += [[a, os.getxattr(path, a).hex()] for a in attributes(path)]
            if os.path.isfile(path) and s.st_size < 1 << 20:
                kept.append(hashlib.sha256(open(path, "rb").read()).hexdigest())
        found[path] = kept
with open("/srv/proof/sparse", "rb") as f:
    f.seek(900000000)
    assert f.read(3) == b"end"
print(json.dumps(found, sort_keys=True))
"""


def inventory(sandbox: Sandbox) -> dict[str, list[object]]:
    done = sandbox.exec(["python3", "-c", INVENTORY], user="root")
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(done.stdout))


def sparse(instance: Instance, sandbox: Sandbox) -> bool:
    """As the pool sees it, since gVisor makes up what stat says of blocks."""
    found = (instance.root / "data/pool/sandboxes" / sandbox.id / "disk/srv/proof/sparse").stat()
    return found.st_size == 1 << 30 and found.st_blocks * 512 < 8 << 20


def test_a_volume_keeps_its_disk_and_nothing_else(client: Client, runtime: str, instance: Instance) -> None:
    sandbox = Sandbox.create(template="test", runtime=runtime, memory="256MiB", client=client)
    furnished = sandbox.exec(FURNISH, user="root")
    assert furnished.exit_code == 0, furnished.stderr
    attributed = sandbox.exec(["python3", "-c", ATTRIBUTES], user="root")
    (view,) = [view for view in client.runtimes() if view.name == runtime]
    if "xattrs" in view.unsupported:
        assert "Operation not supported" in attributed.stderr, "the capability matrix is wrong about xattrs"
    else:
        assert attributed.exit_code == 0, attributed.stderr
    before = inventory(sandbox)
    witness = start_witness(sandbox)
    sandbox.stop()
    assert (sandbox.phase, machine_pids(sandbox)) == ("stopped", set())
    assert sparse(instance, sandbox)
    sandbox.start()
    assert sandbox.phase == "running"
    assert inventory(sandbox) == before
    assert sparse(instance, sandbox)
    assert sandbox.exec("proof && dpkg -s proof | grep ^Version").stdout == "installed\nVersion: 1.2\n"
    assert [
        p.pid for p in sandbox.processes(ended=True) if p.command[:1] == ("python3",) and p.pid == witness.pid
    ] == []
    assert sandbox.exec("grep -l '[w]itness.log' /proc/[0-9]*/cmdline").exit_code != 0, "a process survived the stop"


def test_a_full_sandbox_goes_on_where_it_was(client: Client) -> None:
    sandbox = Sandbox.create(template="test", persistence="full", memory="256MiB", client=client)
    witness = start_witness(sandbox)
    early = read_ticks(witness, 5)
    before = ask(sandbox)
    assert machine_pids(sandbox)
    sandbox.pause()
    paused_at = time.time()
    assert (sandbox.phase, sandbox.hold) == ("paused", "disk")
    assert machine_pids(sandbox) == set(), "the pause left processes on the host"
    until(lambda: time.time() - paused_at > 1.5)  # or a clock that stood still would not be seen
    sandbox.resume()
    asked = time.time()
    after = ask(sandbox)
    answered = time.time()
    assert after["pid"] == before["pid"] == witness.pid
    assert after["inode"] == before["inode"]
    assert after["asked"] == before["asked"] + 1, "the open file lost its content or its position"
    assert before["ticks"] <= after["ticks"] < before["ticks"] + 20 * (answered - paused_at) + 200
    assert asked - 0.5 <= after["time"] <= answered + 0.5
    assert after["random"] != before["random"]
    late = read_ticks(witness, after["ticks"] + 5)
    assert [*early, *late] == list(range(1, late[-1] + 1)), "the stream lost or repeated output over the pause"
    witness.kill()


def test_two_generations_in_a_row_keep_disk_and_memory_together(client: Client) -> None:
    sandbox = Sandbox.create(template="test", persistence="full", memory="256MiB", client=client)
    shell = sandbox.start_process(["/bin/sh"], stdin=True)
    for number in ("1", "2"):
        shell.write(f"x=${{x}}{number}; echo $x >> /home/user/seen\n")
        until(lambda number=number: number in sandbox.exec("cat seen").stdout)
        sandbox.pause()
        sandbox.resume()
    shell.write("echo $x$x >> /home/user/seen; exit 7\n")
    assert shell.wait().exit_code == 7
    assert sandbox.files.read_text("/home/user/seen") == "1\n12\n1212\n"


def test_what_persistence_cannot_do_is_refused_with_the_reason(client: Client) -> None:
    with pytest.raises(Unsupported, match=r"full.*runc") as refused:
        Sandbox.create(template="test", runtime="runc", persistence="full", client=client)
    assert len(str(refused.value)) > len("persistence=full is not possible on runc: "), "no reason is given"
    assert list(Sandbox.list(client=client)) == []


@pytest.mark.parametrize("persistence", ["volume", "ephemeral", "full"])
def test_hold_memory_freezes_in_place(client: Client, runtime: str, persistence: str) -> None:
    if (runtime, persistence) == ("runc", "full"):
        persistence = "volume"  # the combination is refused; a second volume proves that runc can hold twice
    sandbox = Sandbox.create(template="test", runtime=runtime, persistence=persistence, memory="256MiB", client=client)
    start_witness(sandbox)
    before = ask(sandbox)
    pids = machine_pids(sandbox)
    sandbox.pause(hold="memory")
    assert (sandbox.phase, sandbox.hold) == ("paused", "memory")
    assert machine_pids(sandbox) == pids, "the machine stays resident"
    held = time.monotonic()
    until(lambda: time.monotonic() - held > 1)
    sandbox.resume()
    until(lambda: ask(sandbox)["gap"] > 0.9)  # not at once: the witness may answer before its ticker has woken
    assert ask(sandbox)["pid"] == before["pid"]
    if persistence != "full":
        with pytest.raises(Unsupported, match="memory") as refused:
            sandbox.pause()
        assert "hold=memory" in (refused.value.hint or "")
        assert "stop" in (refused.value.hint or "")
        assert ask(sandbox)["pid"] == before["pid"]


def gone(client: Client, sandbox: Sandbox) -> bool:
    try:
        Sandbox.get(sandbox.id, client=client)
    except NotFound:
        return True
    return False


def test_an_ephemeral_one_is_gone_when_it_stops(client: Client, runtime: str, instance: Instance) -> None:
    sandbox = Sandbox.create(template="test", runtime=runtime, persistence="ephemeral", memory="256MiB", client=client)
    sandbox.stop()
    assert sandbox.phase == "deleted"
    assert gone(client, sandbox)
    assert events_of(client, sandbox.id)[-1] == "sandbox.deleted"
    assert instance.fsck() == []
    assert not list((instance.root / "data/pool/sandboxes").glob(f"{sandbox.id}*"))


def test_a_lifetime_ends_by_the_rule_of_the_persistence(client: Client, instance: Instance) -> None:
    def create(**options: object) -> Sandbox:
        given: dict[str, object] = {"runtime": "runc", "memory": "256MiB", **options}
        return Sandbox.create(template="test", client=client, **given)  # type: ignore[arg-type]

    forever = create()
    volume = create(ttl=1)
    deleted = create(ttl=1, on_expiry="delete")
    ephemeral = create(ttl=1, persistence="ephemeral")
    full = create(ttl=1, persistence="full", runtime="gvisor")
    until(lambda: gone(client, deleted) and gone(client, ephemeral), 20)
    volume.wait("stopped", timeout=20)
    full.wait("paused", timeout=20)
    assert full.hold == "disk"
    assert (volume.view.reason, full.view.reason) == (
        "stopped: its lifetime ended",
        "paused to disk: its lifetime ended",
    )
    assert "sandbox.expired" in events_of(client, volume.id)
    assert forever.view.expires_at is None
    forever.refresh()
    assert forever.phase == "running"
    volume.start()  # a lifetime that has ended does not strike again
    full.resume()
    assert volume.view.expires_at is full.view.expires_at is None
    volume.update(ttl=3600)
    assert volume.view.expires_at is not None
    volume.update(ttl=None)
    assert volume.view.expires_at is None
    assert instance.fsck() == []


def test_run_deletes_its_sandbox_at_the_end(client: Client, instance: Instance) -> None:
    done = instance.run(
        "run", "--template", "test", "--runtime", "runc", "--", "sh", "-c", "echo out; exit 3", check=False
    )
    assert (done.returncode, done.stdout) == (3, "out\n")
    assert list(Sandbox.list(client=client)) == []


@contextmanager
def running_run(instance: Instance, client: Client) -> Iterator[tuple[subprocess.Popen[bytes], Sandbox]]:
    program = [sys.executable, "-m", "sandkeep.cli.main", "run", "--template", "test", "--runtime", "runc"]
    with subprocess.Popen([*program, "--", "sleep", "1000"], env=instance.env, stdout=subprocess.DEVNULL) as run:
        try:
            yield run, until(lambda: next(Sandbox.list(phases=["running"], client=client), None), 20)
        finally:
            run.kill()


def test_run_leaves_its_sandbox_to_the_grace_when_it_is_killed(client: Client, instance: Instance) -> None:
    with running_run(instance, client) as (run, sandbox):
        run.kill()
        run.wait()
        sandbox.refresh()
        ends = sandbox.view.expires_at
        assert ends is not None
        assert 0 < ends.timestamp() - time.time() <= 30


@pytest.mark.long
def test_half_a_minute_after_a_killed_run_nothing_is_left(client: Client, instance: Instance) -> None:
    with running_run(instance, client) as (run, sandbox):
        run.kill()
        until(lambda: gone(client, sandbox), 40, wait=0.5)
    assert instance.fsck() == []


def test_heartbeats_keep_a_client_s_sandbox_and_silence_ends_it(client: Client) -> None:
    sandbox = Sandbox.create(
        template="test", runtime="runc", persistence="ephemeral", memory="256MiB", grace=2, client=client
    )
    begun = time.monotonic()

    def beat() -> bool:
        sandbox.heartbeat()
        return time.monotonic() - begun > 4.5

    until(beat, wait=0.3)
    sandbox.refresh()
    assert sandbox.phase == "running"
    silent = time.monotonic()
    until(lambda: gone(client, sandbox), 10, wait=0.1)
    assert time.monotonic() - silent > 1.5
    with pytest.raises(SandkeepError, match="only an ephemeral sandbox"):
        Sandbox.create(template="test", grace=5, client=client)
