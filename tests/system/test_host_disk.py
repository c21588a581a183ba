"""The host's own disk, with database, journal, records and the pool's file on it: full, then failing under the daemons."""

import contextlib
import errno
import fcntl
import json
import os
import struct
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import NoCapacity, SandkeepError, StorageFailed, Unavailable
from support.instance import client_of, until
from support.power import Host
from support.witness import settled_fsck

pytestmark = [pytest.mark.requires("btrfs", "gvisor", "runc")]

_EXT4_SHUTDOWN, _NOLOGFLUSH = 0x8004587D, 2


def ready(host: Host) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(host.instance.config["url"] + "/readyz", timeout=10) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, str(json.loads(error.read()).get("reason"))


def counting(client: Client, **options: str) -> Sandbox:
    sandbox = Sandbox.create(template="test", memory="128MiB", client=client, **options)  # type: ignore[arg-type]
    counter = "n=0; while :; do n=$((n+1)); echo $n > /dev/shm/count; sleep 0.05; done"
    sandbox.start_process(["bash", "-c", counter]).detach()
    until(lambda: count(sandbox) > 0)
    return sandbox


def count(sandbox: Sandbox) -> int:
    return int(sandbox.exec("cat /dev/shm/count 2>/dev/null || echo 0").stdout.strip() or 0)


def goes_on(sandbox: Sandbox) -> None:
    before = count(sandbox)
    until(lambda: count(sandbox) > before)


def fill(filler: Path) -> None:
    """Down to the last block, also those that only root may take."""
    with open(filler, "wb") as file:
        size, step = 0, 1 << 30
        while step >= 4096:
            try:
                os.posix_fallocate(file.fileno(), size, step)
                size += step
            except OSError as error:
                assert error.errno == errno.ENOSPC
                step //= 2


def test_a_full_host_disk_refuses_changes_and_harms_nothing(host: Host) -> None:
    instance = host.instance
    filler = instance.root / "data/filler"
    with client_of(instance) as client:
        running, full = counting(client, runtime="runc"), counting(client, persistence="full")
        daemons = [instance.pid(name) for name in ("server", "runner")]
        try:
            fill(filler)
            with pytest.raises((NoCapacity, StorageFailed)) as refused:
                Sandbox.create(template="test", runtime="runc", memory="128MiB", client=client)
            assert "disk" in refused.value.message and refused.value.hint
            for change in (full.pause, running.stop):
                with pytest.raises((NoCapacity, StorageFailed)):
                    change()
            status, reason = until(lambda: (found := ready(host))[0] == 503 and found, 20)
            assert status == 503 and "disk" in reason
            assert {sandbox.id for sandbox in Sandbox.list(client=client)} == {running.id, full.id}
            goes_on(running)
            goes_on(full)
        finally:
            filler.unlink()
        until(lambda: ready(host)[0] == 200, 20)
        assert [instance.pid(name) for name in ("server", "runner")] == daemons, "a daemon did not bear it"
        until(lambda: _settled(client), 40, wait=0.3)
        before = count(full)
        full.pause()
        full.resume()
        assert count(full) >= before
        running.delete()
        full.delete()
        settled_fsck(instance)


def _settled(client: Client) -> bool:
    return all(sandbox.phase == "running" for sandbox in Sandbox.list(client=client))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("read-only", marks=pytest.mark.long),
        pytest.param("errors of input and output", marks=pytest.mark.long),
    ],
)
def test_a_host_disk_that_fails_is_said_and_what_was_acknowledged_is_there_afterwards(host: Host, fault: str) -> None:
    instance, data = host.instance, host.instance.root / "data"
    with client_of(instance) as client:
        kept = Sandbox.create("kept", template="test", persistence="full", memory="128MiB", client=client)
        kept.exec("echo 1 > note; sync note; echo 1 > /dev/shm/note")
        kept.pause()
        if fault == "read-only":
            subprocess.run(["mount", "-o", "remount,abort", str(data)], check=False, capture_output=True)
        else:
            folder = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.ioctl(folder, _EXT4_SHUTDOWN, struct.pack("I", _NOLOGFLUSH))
            os.close(folder)
        with pytest.raises(SandkeepError) as failed:
            Sandbox.create("never", template="test", runtime="runc", memory="128MiB", client=client)
        assert isinstance(failed.value, StorageFailed | NoCapacity | Unavailable), repr(failed.value)
        assert failed.value.hint
        assert ready(host)[0] == 503
        with contextlib.suppress(SandkeepError):  # reads, where physically possible
            assert Sandbox.get("kept", client=client).phase == "paused"
    host.lose()
    host.boot(host.outer / "host.img")
    with client_of(instance) as client:
        assert list(Sandbox.list(name="never", client=client)) == []
        kept = Sandbox.get("kept", client=client)
        assert (kept.phase, kept.hold) == ("paused", "disk")
        assert kept.exec("cat note /dev/shm/note").stdout == "1\n1\n"
        kept.delete()
        settled_fsck(instance)
