"""One file carries a sandbox from one installation to another, on the real runtimes; and all that can go wrong on the way."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import AlreadyExists, Conflict, InvalidArgument, NoCapacity, NotFound, SandkeepError
from support.instance import Instance, client_of, pool_with_only, until

COUNTER = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/n.new; mv /dev/shm/n.new /dev/shm/n; sleep 0.01; done"
FILL = """
set -e
mkdir -p /srv/many && cd /srv/many
for n in $(seq 300); do echo "file $n" > "f$n"; done
dd if=/dev/urandom of=large bs=64k count=80 status=none
truncate -s 50M holes && printf end >> holes
ln -s /etc/passwd link; ln large same; mkfifo pipe
install -m 4755 -o 1234 -g 1234 /bin/true owned
printf odd > "$(printf 'n\\377me')"
mkdir -m 700 private && chown 4321 private
mkdir -p /etc/ssh && echo of-before > /etc/ssh/ssh_host_test_key
printf '#!/bin/sh\necho of-its-own > /etc/ssh/ssh_host_test_key\n' > /usr/bin/ssh-keygen && chmod 755 /usr/bin/ssh-keygen
"""
SUMS = (
    "cd /srv/many && find . -printf '%p %y %m %U %G %l %T@\\n' | LC_ALL=C sort | sha256sum "
    "&& find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
)
AGREED: dict[str, Any] = {
    "labels": {"of": "mine"},
    "env": {"TOKEN": "hush-hush-hush"},
    "ttl": "30d",
    "on_failure": "leave",
    "pids": 999,
}


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Instance]:
    """Another installation."""
    with Instance.made("test") as made:
        yield made


@pytest.fixture
def there(elsewhere: Instance) -> Iterator[Client]:
    elsewhere.ensure_up()
    with client_of(elsewhere) as made:
        yield made
        elsewhere.clean(made)


def box(client: Client, runtime: str, **options: Any) -> Sandbox:
    return Sandbox.create(template="test", runtime=runtime, memory="192MiB", disk="512MiB", client=client, **options)  # type: ignore[arg-type]


def said(sandbox: Sandbox, command: str) -> str:
    done = sandbox.exec(command, user="root")
    assert done.exit_code == 0, done.stderr
    return done.stdout.strip()


def exported(sandbox: Sandbox) -> tuple[bytes, str]:
    file = io.BytesIO()
    key = sandbox.export(file)
    return file.getvalue(), key


def nothing(instance: Instance, client: Client) -> bool:
    pool = instance.root / "data/pool/sandboxes"
    left = list(pool.iterdir()) if pool.exists() else []
    return not left and list(Sandbox.list(client=client)) == [] and instance.fsck() == []


def test_from_one_installation_to_another(
    client: Client, instance: Instance, there: Client, elsewhere: Instance, runtime: str, tmp_path: Path
) -> None:
    sandbox = box(client, runtime, name="traveller", **AGREED)
    said(sandbox, FILL)
    sandbox.stop()
    sums, machine_id = said(sandbox, SUMS), said(sandbox, "cat /etc/machine-id")
    sandbox.timeline.set(every="6h", keep_last=4)
    with pytest.raises(Conflict, match="stopped") as running:
        sandbox.export(tmp_path / "file")
    assert "sandkeep stop traveller" in (running.value.hint or "") and not list(tmp_path.iterdir())
    sandbox.stop()
    key = sandbox.export(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (
        tmp_path / "file"
    ).stat().st_mode & 0o777 == 0o600
    data = (tmp_path / "file").read_bytes()
    for word in (b"hush-hush-hush", b"file 7\n", b"traveller", sandbox.id.encode(), key.encode()):
        assert word not in data
    assert instance.fsck() == []
    moved = Sandbox.from_file(tmp_path / "file", key, client=there)
    assert moved.id != sandbox.id and (moved.name, moved.phase, moved.labels) == (
        "traveller",
        "stopped",
        {"of": "mine"},
    )
    for field in ("runtime", "persistence", "cpus", "memory", "disk", "pids", "network", "on_failure"):
        assert getattr(moved.view, field) == getattr(sandbox.view, field), field
    assert moved.timeline.show().keep_last == 4
    assert elsewhere.fsck() == []
    elsewhere.kill("runner", "server")
    elsewhere.ensure_up()
    assert said(moved, SUMS) == sums
    assert said(moved, "echo $TOKEN; hostname") == "hush-hush-hush\ntraveller"
    assert said(moved, "cat /etc/machine-id") != machine_id, "it is another one"
    assert said(moved, "cat /etc/ssh/ssh_host_test_key") == "of-its-own"
    assert said(moved, "echo $SANDKEEP_SANDBOX_ID") == moved.id
    fork = moved.fork(kind="disk")[0]
    assert said(fork, SUMS) == sums
    moved.stop()
    said(moved, "true")
    kinds = [event.kind for event in moved.events()]
    assert kinds[:2] == ["sandbox.created", "sandbox.imported"]
    assert "sandbox.exported" in [event.kind for event in sandbox.events()]
    logs = (elsewhere.root / "log", instance.root / "log")
    assert not any(key in path.read_text(errors="replace") for folder in logs for path in folder.glob("*.log"))


def test_memory_goes_on_in_another_installation(client: Client, there: Client, elsewhere: Instance) -> None:
    sandbox = box(client, "gvisor", name="thinker", persistence="full", **AGREED)
    machine_id = said(sandbox, "echo kept > /root/file; cat /etc/machine-id")
    sandbox.start_process(["sh", "-c", COUNTER], user="root").detach()
    until(lambda: int(said(sandbox, "cat /dev/shm/n 2>/dev/null || echo 0")))
    sandbox.pause()
    data, key = exported(sandbox)
    moved = Sandbox.from_file(io.BytesIO(data), key, client=there)
    assert (moved.phase, moved.hold) == ("paused", "disk")
    elsewhere.kill("runner", "server")
    elsewhere.ensure_up()
    moved.resume()
    now = int(said(moved, "cat /dev/shm/n"))
    assert now > 1
    until(lambda: int(said(moved, "cat /dev/shm/n")) > now)
    assert said(moved, "cat /etc/machine-id") != machine_id
    assert said(moved, "echo $SANDKEEP_SANDBOX_ID $TOKEN") == f"{moved.id} hush-hush-hush"
    receipt = moved.receipt()
    assert all(check.ok for check in receipt.checks) and {check.name for check in receipt.checks} >= {
        "memory",
        "network",
        "environment",
        "limits",
    }
    moved.pause()
    moved.resume()
    assert int(said(moved, "cat /dev/shm/n")) > now, "by now it is its own"
    sandbox.resume()
    assert int(said(sandbox, "cat /dev/shm/n")), "and the one that it was goes on, too"
    second = Sandbox.from_file(io.BytesIO(data), key, name="second", disk_only=True, client=there)
    assert second.phase == "stopped" and "left aside" in second.reason
    assert said(second, "cat /root/file; ls /dev/shm; cat /etc/machine-id").split()[0] == "kept"
    assert elsewhere.fsck() == []


@pytest.mark.long
def test_what_is_damaged_is_refused_and_nothing_is_left(
    client: Client, there: Client, elsewhere: Instance, tmp_path: Path
) -> None:
    sandbox = box(client, "runc", name="fragile")
    said(sandbox, "dd if=/dev/urandom of=/srv/large bs=1M count=24 status=none")
    sandbox.stop()
    data, key = exported(sandbox)
    middle = len(data) // 2
    wrong = {
        "cut": data[:middle],
        "cut at its end": data[:-3],
        "flipped": data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :],
        "flipped in its head": data[:40] + bytes([data[40] ^ 16]) + data[41:],
        "longer": data + b"more",
        "empty": b"",
        "something else": os.urandom(1 << 20),
    }
    for what, content in wrong.items():
        with pytest.raises(InvalidArgument) as refused:
            Sandbox.from_file(io.BytesIO(content), key, client=there)
        assert refused.value.hint, what
        assert nothing(elsewhere, there), what
    with pytest.raises(InvalidArgument, match="key"):
        Sandbox.from_file(io.BytesIO(data), "skf_" + "0" * 64, client=there)
    # Somebody else's route: what they send is refused at its head, whatever follows.
    saved = elsewhere.config
    headers = {"Authorization": f"Bearer {saved['key']}", "Sandkeep-File-Key": key}
    with httpx2.Client(base_url=saved["url"], headers=headers, timeout=60, trust_env=False) as http:
        answer = http.post("/v1/import", content=b"sandkeep portable sandbox 1\nM\xff\xff\xff\xff" + bytes(8 << 20))
        assert answer.status_code == 400 and answer.json()["code"] == "invalid_argument"
        answer = http.post("/v1/import", json={"name": "x"})
        assert answer.status_code == 400
    assert nothing(elsewhere, there)
    assert said(Sandbox.from_file(io.BytesIO(data), key, client=there), "stat -c %s /srv/large") == str(24 << 20)
    with pytest.raises(AlreadyExists) as taken:
        Sandbox.from_file(io.BytesIO(data), key, client=there)
    assert "--name" in (taken.value.hint or "")
    assert len(list(Sandbox.list(client=there))) == 1


@pytest.mark.long
def test_too_little_room(client: Client, there: Client, elsewhere: Instance) -> None:
    sandbox = box(client, "runc")
    said(sandbox, "dd if=/dev/urandom of=/srv/large bs=1M count=200 status=none")
    sandbox.stop()
    data, key = exported(sandbox)
    with pool_with_only(elsewhere, 300 << 20), pytest.raises(NoCapacity):
        Sandbox.from_file(io.BytesIO(data), key, client=there)
    assert nothing(elsewhere, there)
    assert said(Sandbox.from_file(io.BytesIO(data), key, client=there), "stat -c %s /srv/large") == str(200 << 20)


@pytest.mark.long
def test_a_kill_in_the_middle_leaves_all_or_nothing(
    client: Client, there: Client, elsewhere: Instance, runtime: str
) -> None:
    sandbox = box(client, runtime, name="moving")
    said(sandbox, FILL)
    sandbox.stop()
    sums = said(sandbox, SUMS)
    sandbox.stop()
    data, key = exported(sandbox)

    def killing(daemons: tuple[str, ...]) -> Iterator[bytes]:
        yield data[: len(data) // 2]
        elsewhere.kill(*daemons)
        yield data[len(data) // 2 :]

    for daemons in (("runner",), ("server",), ("runner", "server")):
        with pytest.raises(SandkeepError):
            Sandbox.from_file(killing(daemons), key, client=there)  # type: ignore[arg-type]
        elsewhere.ensure_up()
        until(lambda: nothing(elsewhere, there), 30, wait=0.2)
    assert said(Sandbox.from_file(io.BytesIO(data), key, client=there), SUMS) == sums


@pytest.mark.long
def test_a_deletion_ends_an_export(client: Client, instance: Instance) -> None:
    sandbox = box(client, "runc", name="going")
    said(sandbox, "dd if=/dev/urandom of=/srv/large bs=1M count=300 status=none")
    sandbox.stop()

    class Slow(io.RawIOBase):
        taken = 0

        def write(self, data: Any) -> int:
            self.taken += len(data)
            if self.taken > 4 << 20 and sandbox.phase != "gone":
                Sandbox.get("going", client=client).delete()
                sandbox.view.phase = "gone"  # type: ignore[assignment]
                until(lambda: not (instance.root / "data/pool/sandboxes" / sandbox.id).exists())
                import time

                time.sleep(1.2)  # what looks for it looks once a second
            return len(data)

    with pytest.raises((NotFound, SandkeepError)):
        sandbox.export(Slow())  # type: ignore[arg-type]
    assert instance.fsck() == []


def test_the_command_line(
    client: Client, instance: Instance, there: Client, elsewhere: Instance, tmp_path: Path
) -> None:
    sandbox = box(client, "runc", name="tool")
    said(sandbox, "echo kept > /root/file")
    told = instance.run("export", "tool", "-o", str(tmp_path / "a"), check=False)
    assert told.returncode == 5 and "sandkeep stop tool" in told.stderr and not list(tmp_path.iterdir())
    instance.run("stop", "tool")
    told = instance.run("export", "tool", "--output", str(tmp_path / "a"))
    assert told.stdout.startswith(f"tool is in {tmp_path}/a (")
    key = told.stderr.strip().removeprefix("key: ")
    assert elsewhere.run("import", str(tmp_path / "a"), env={"SANDKEEP_FILE_KEY": key}).stdout.startswith(
        "tool is stopped"
    )
    assert elsewhere.run("exec", "tool", "--user", "root", "--", "cat", "/root/file").stdout == "kept\n"
    told = elsewhere.run("import", str(tmp_path / "a"), check=False, env={"SANDKEEP_FILE_KEY": key})
    assert told.returncode == 5 and "--name" in told.stderr
    as_json = instance.json("export", "tool", "--output", str(tmp_path / "b"))
    assert as_json["bytes"] == (tmp_path / "b").stat().st_size and as_json["key"] not in (key, None)
    key_file = tmp_path / "key"
    as_json = instance.json("export", "tool", "--output", str(tmp_path / "b"), "--key-file", str(key_file))
    assert as_json["key"] is None and key_file.stat().st_mode & 0o777 == 0o600
    assert instance.run("export", "tool", "-o", "-", "--key-file", str(key_file), check=False).returncode == 2, (
        "it is there"
    )
    key_file.unlink()
    command = [sys.executable, "-m", "sandkeep.cli.main", "export", "tool", "-o", "-", "--key-file", str(key_file)]
    whole = subprocess.run(command, env=instance.env, capture_output=True, check=True)
    assert not whole.stderr
    (tmp_path / "c").write_bytes(whole.stdout)
    with open(tmp_path / "c", "rb") as file:
        made = elsewhere.run("import", "-", "--name", "again", "--key-file", str(key_file), "--json", stdin=file)
    assert json.loads(made.stdout)["name"] == "again"
    told = elsewhere.run("import", str(tmp_path / "c"), check=False, stdin=subprocess.DEVNULL)
    assert told.returncode == 2 and "--key-file" in told.stderr
    told = elsewhere.run("import", str(key_file), "--key-file", str(key_file), check=False)
    assert told.returncode == 2 and "no exported sandbox" in told.stderr


def test_an_interrupted_export_leaves_no_file(client: Client, instance: Instance, tmp_path: Path) -> None:
    sandbox = box(client, "runc", name="large")
    said(sandbox, "dd if=/dev/urandom of=/srv/large bs=1M count=300 status=none")
    sandbox.stop()
    program = subprocess.Popen(
        [sys.executable, "-m", "sandkeep.cli.main", "export", "large", "-o", "file", "--key-file", "key"],
        env=instance.env,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    )
    try:
        until(lambda: (tmp_path / "file.part").exists() and (tmp_path / "file.part").stat().st_size, 60)
    finally:
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=60)
    assert program.returncode == 130
    assert list(tmp_path.iterdir()) == []
    until(lambda: instance.fsck() == [])
    until(lambda: not list((instance.root / "data/node/journal").glob("*.journal")), 20)
