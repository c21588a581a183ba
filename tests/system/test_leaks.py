"""Cycles of create, exec, pause, resume and delete leave nothing more on the host than was there before."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import SandkeepError
from support.census import quota_groups, same_again, settled_census
from support.instance import Instance, until

AT_ONCE = 4


def cycle(client: Client, runtime: str) -> None:
    full = runtime == "gvisor"
    sandbox = Sandbox.create(
        template="test", runtime=runtime, persistence="full" if full else "volume", memory="256MiB", client=client
    )
    assert sandbox.exec("echo 1 > file").exit_code == 0
    process = sandbox.start_process(["sleep", "1000"])
    sandbox.pause(hold="disk" if full else "memory")
    sandbox.resume()
    assert sandbox.exec("cat file").stdout == "1\n"
    sandbox.stop()
    sandbox.start()
    process.detach()
    sandbox.delete()


def cycles(client: Client, runtime: str, count: int) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda _: cycle(client, runtime), range(count)))


def run(client: Client, instance: Instance, runtime: str, count: int) -> None:
    cycles(client, runtime, AT_ONCE)  # what is opened once, at first use, is not a leak
    before = settled_census(instance)
    cycles(client, runtime, count)
    same_again(instance, before)
    assert instance.fsck() == []
    instance.kill("runner")
    instance.ensure_up()
    until(lambda: quota_groups(instance) == [], 30, wait=0.5)


def test_cycles_leave_nothing(client: Client, instance: Instance, runtime: str) -> None:
    run(client, instance, runtime, 12)


@pytest.mark.long
def test_a_hundred_cycles_leave_nothing(client: Client, instance: Instance, runtime: str) -> None:
    run(client, instance, runtime, 100)


def test_failed_creations_leave_nothing(client: Client, instance: Instance, runtime: str) -> None:
    cycles(client, runtime, 1)
    before = settled_census(instance)
    bad = [
        {"template": "none-such"},
        {"memory": "4TiB"},
        {"persistence": "snapshot"},
        {"cpus": -1},
        {"name": "../x"},
        {"memory": "64MiB", "disk": "64MiB", "pids": 1},
    ]
    for options in bad:
        with pytest.raises(SandkeepError):
            Sandbox.create(**{"template": "test", "runtime": runtime, "client": client, **options})  # type: ignore[arg-type]
    same_again(instance, before)
