"""Descriptors run out in the guest, in its agent, in the server and in the runner: who has none says so, and nothing is lost."""

import os
import resource
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import NoCapacity, SandkeepError
from support.instance import Instance, until
from support.witness import settled_fsck

pytestmark = pytest.mark.requires("btrfs", "gvisor", "runc")

HOLD = """
import resource, socket, sys, time
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held = []
try:
    while len(held) < 3000:
        held.append(socket.create_connection(("127.0.0.1", 49983), 5))
except OSError:
    pass
open("/tmp/held", "w").write(str(len(held)))
time.sleep(600)
"""
OPEN = """
import os
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    print(len(held) > 500, error.errno)
"""


def box(client: Client, runtime: str) -> Sandbox:
    return Sandbox.create(template="test", runtime=runtime, memory="256MiB", client=client)


@contextmanager
def few_descriptors(pid: int, free: int) -> Iterator[None]:
    """The process may open so many more. Its own user sets that: root needs a capability for others' limits."""
    status = Path(f"/proc/{pid}/status").read_text()
    user, group = (int(status.partition(f"{name}:")[2].split()[0]) for name in ("Uid", "Gid"))

    def limit(most: int) -> None:
        subprocess.run(["prlimit", f"--pid={pid}", f"--nofile={most}:"], check=True, user=user, group=group)

    limit(len(os.listdir(f"/proc/{pid}/fd")) + free)
    try:
        yield
    finally:
        limit(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def test_a_guest_that_has_opened_all_that_it_may(client: Client, runtime: str) -> None:
    one = box(client, runtime)
    assert one.exec(["python3", "-c", OPEN]).stdout == "True 24\n"
    assert one.exec("echo on").stdout == "on\n"


def test_processes_inside_do_not_keep_the_host_from_the_agent(client: Client, runtime: str) -> None:
    one = box(client, runtime)
    one.start_process(["python3", "-c", HOLD]).detach()
    until(lambda: one.exec("cat /tmp/held").stdout != "", 60)
    assert int(one.exec("cat /tmp/held").stdout) >= 400
    one.pause(hold="memory")
    one.resume()
    assert one.exec("echo on").stdout == "on\n"


def test_a_server_without_descriptors_goes_on_when_it_has_some(client: Client, instance: Instance) -> None:
    one = box(client, "runc")
    host, port = client.url.removeprefix("http://").split(":")
    with ExitStack() as held, few_descriptors(instance.pid("server"), 4):
        for _ in range(20):
            held.enter_context(socket.create_connection((host, int(port)), 5))

    def answers() -> bool:
        try:
            return one.exec("echo on").stdout == "on\n"
        except SandkeepError:
            return False

    until(answers, 30)
    one.delete()
    settled_fsck(instance)


def test_a_runner_without_descriptors_takes_nothing_more_and_loses_nothing(client: Client, instance: Instance) -> None:
    one = box(client, "runc")
    with few_descriptors(instance.pid("runner"), 24):
        with pytest.raises(NoCapacity, match="descriptors"):
            box(client, "runc")
        one.pause(hold="memory")
        one.resume()
        assert one.exec("echo on").stdout == "on\n"
    with box(client, "gvisor") as two:
        assert two.exec("echo on").stdout == "on\n"
        two.delete()
    one.delete()
    settled_fsck(instance)
