"""A disk's limit holds over everything a sandbox does, a full disk locks nobody in, and a full pool refuses in time."""

from pathlib import Path

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import NoCapacity
from support.instance import Instance, pool_with_only

MIB = 1 << 20
LIMIT = 96 * MIB
FILL = """
import errno, os, sys
size, path = int(sys.argv[1]) << 20, sys.argv[2]
done, block, why = 0, os.urandom(1 << 20), 0
try:
    with open(path, "ab", buffering=0) as file:
        while done < size:
            done += file.write(block)
        os.fsync(file.fileno())
except OSError as error:
    why = error.errno
print(done >> 20, errno.errorcode.get(why, why))
"""


def fill(sandbox: Sandbox, mib: int, path: str) -> tuple[int, str]:
    """MiB written, and the errno's name that ended it ("0": none)."""
    done = sandbox.exec(["python3", "-c", FILL, str(mib), path])
    assert done.exit_code == 0, done.stderr
    count, why = done.stdout.split()
    return int(count), why


def held(sandbox: Sandbox) -> int:
    """Bytes of the files that it made."""
    return int(sandbox.exec("du -sb /home/user | cut -f1").stdout)


def test_the_limit_is_met_as_a_quota_error(client: Client, runtime: str) -> None:
    sandbox = Sandbox.create(template="test", runtime=runtime, memory="128MiB", disk=LIMIT, client=client)
    count, why = fill(sandbox, 300, "all")
    assert why in ("EDQUOT", "ENOSPC")
    assert 60 < count <= 96
    assert fill(sandbox, 300, "more")[1] in ("EDQUOT", "ENOSPC")
    assert held(sandbox) <= LIMIT
    sandbox.exec("rm all more; sync")
    assert fill(sandbox, 40, "again") == (40, "0")


def test_ten_pauses_never_exceed_the_limit(client: Client) -> None:
    sandbox = Sandbox.create(template="test", persistence="full", memory="128MiB", disk=LIMIT, client=client)
    for number in range(10):
        assert fill(sandbox, 20, f"round-{number % 2}")[1] in ("0", "EDQUOT", "ENOSPC")
        sandbox.pause()
        assert (sandbox.stats().disk or 0) <= LIMIT
        sandbox.resume()
        assert held(sandbox) <= LIMIT
        if number % 2:
            sandbox.exec("rm -f round-*")
    assert fill(sandbox, 300, "rest")[1] in ("EDQUOT", "ENOSPC")
    assert held(sandbox) <= LIMIT


def test_ten_starts_never_exceed_the_limit(client: Client) -> None:
    sandbox = Sandbox.create(template="test", runtime="runc", memory="128MiB", disk=LIMIT, client=client)
    for number in range(10):
        fill(sandbox, 15, f"round-{number}")
        sandbox.stop()
        assert (sandbox.stats().disk or 0) <= LIMIT
        sandbox.start()
    assert held(sandbox) <= LIMIT
    assert fill(sandbox, 300, "rest")[1] in ("EDQUOT", "ENOSPC")


@pytest.mark.parametrize("persistence", ["volume", "full"])
def test_a_full_disk_locks_nobody_in(client: Client, persistence: str) -> None:
    runtimes = ("gvisor",) if persistence == "full" else ("gvisor", "runc")
    for runtime in runtimes:
        sandbox = Sandbox.create(
            template="test", runtime=runtime, persistence=persistence, memory="128MiB", disk=LIMIT, client=client
        )
        assert fill(sandbox, 300, "all")[1] in ("EDQUOT", "ENOSPC")
        sandbox.pause(hold="disk" if persistence == "full" else "memory")
        sandbox.resume()
        assert sandbox.exec("echo awake").stdout == "awake\n"
        sandbox.stop()
        sandbox.start()
        assert sandbox.exec("test -s all; echo $?").stdout == "0\n"
        assert sandbox.exec("rm all; echo $?").stdout == "0\n"
        assert fill(sandbox, 20, "again") == (20, "0")
        fill(sandbox, 300, "all")
        sandbox.delete()


def test_no_way_around_the_limit_on_the_hosts_own_file_system(client: Client) -> None:
    """runc's guest is root on btrfs itself: a subvolume of its own would be in no quota group."""
    sandbox = Sandbox.create(template="test", runtime="runc", memory="128MiB", disk=LIMIT, client=client)
    attempt = """
import errno, fcntl, os
os.makedirs("/escape", exist_ok=True)
folder = os.open("/escape", os.O_RDONLY)
name = b"sub".ljust(4088, b"\\0")
calls = {
    "create": (0x5000940E, (0).to_bytes(8, "little") + name),
    "create 2": (0x50009418, bytes(56) + b"sub".ljust(4040, b"\\0")),
    "snapshot": (0x50009401, folder.to_bytes(8, "little") + name),
    "snapshot 2": (0x50009417, folder.to_bytes(8, "little") + bytes(48) + b"sub".ljust(4040, b"\\0")),
    "group limit": (0x8030942B, bytes(48)),
    "group assign": (0x40189429, bytes(24)),
    "quota control": (0xC0109428, (2).to_bytes(8, "little") + bytes(8)),
}
for what, (call, argument) in calls.items():
    try:
        fcntl.ioctl(folder, call, bytearray(argument))
        print(what, "worked")
    except OSError as error:
        print(what, errno.errorcode[error.errno])
"""
    said = sandbox.exec(["python3", "-c", attempt], user="root")
    assert said.stdout.count("\n") == 7, said.stderr
    assert [line for line in said.stdout.splitlines() if not line.endswith("EPERM")] == []
    assert sandbox.exec("test -e /escape/sub; echo $?", user="root").stdout == "1\n"
    done = sandbox.exec(["python3", "-c", FILL, "300", "/escape/all"], user="root")
    assert int(done.stdout.split()[0]) <= LIMIT // MIB


def test_a_full_pool_refuses_a_pause_before_anything_is_frozen(client: Client, instance: Instance) -> None:
    sandbox = Sandbox.create(template="test", persistence="full", memory="128MiB", client=client)
    counter = sandbox.start_process(["bash", "-c", "for ((n = 0; ; n++)); do echo $n > count; sleep 0.05; done"])
    with pool_with_only(instance, 100 * MIB):
        with pytest.raises(NoCapacity) as refused:
            sandbox.pause()
        assert refused.value.status == 507
        assert "free" in refused.value.message and "hold=memory" in str(refused.value.hint)
        sandbox.refresh()
        assert sandbox.phase == "running"
        assert counter.pid in {process.pid for process in sandbox.processes()}
        assert "connections_reset" not in refused.value.details
        sandbox.pause(hold="memory")
        sandbox.resume()
        with pytest.raises(NoCapacity) as refused:
            Sandbox.create(template="test", runtime="runc", memory="128MiB", client=client)
        assert refused.value.details["pool_free"] < 200 * MIB
        assert refused.value.details["fits"] == 0
        other = sandbox.exec("echo still here")
        assert other.stdout == "still here\n"
        counter.detach()
        sandbox.delete()
        assert not Path(instance.root, "data/pool/sandboxes", sandbox.id).exists()


def test_full_sandboxes_reserve_room_for_their_memory(client: Client, instance: Instance) -> None:
    with pool_with_only(instance, 1400 * MIB):
        first = Sandbox.create(template="test", persistence="full", memory="512MiB", client=client)
        with pytest.raises(NoCapacity, match="reserve") as refused:
            Sandbox.create(template="test", persistence="full", memory="768MiB", client=client)
        assert refused.value.details["fits"] == 0
        assert refused.value.retry_after
        small = Sandbox.create(template="test", persistence="full", memory="128MiB", client=client)
        first.pause()
        first.resume()
        small.delete()
