"""Snapshots, forks and sandboxes go in whatever order: what stays is whole, and the pool's room comes back."""

import random
from typing import Any

import pytest

from sandkeep.sdk import Client, Sandbox
from support.instance import Instance, until

SUMS = "cd /home/user/tree && sha256sum * | sha256sum"
CHANGE = """
import os, random
numbers = random.Random({seed})
os.makedirs("/home/user/tree", exist_ok=True)
for number in numbers.sample(range(40), 10):
    path = f"/home/user/tree/{{number}}"
    if os.path.exists(path) and numbers.random() < 0.2:
        os.unlink(path)
    else:
        with open(path, "wb") as file:
            file.write(numbers.randbytes(400_000))
os.sync()
"""
"""Some files are new, some are others, some are gone; most are shared with the moment before."""
_NEAR = 0.01


def used(client: Client) -> int:
    """Bytes of the pool that are not free."""
    capacity = client.node().capacity
    return capacity.pool_total - capacity.pool_free


def sums(sandbox: Sandbox) -> str:
    done = sandbox.exec(SUMS)
    assert done.exit_code == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("runtime", "seed"),
    [
        ("gvisor", 1),
        *(pytest.param("runc", seed, marks=pytest.mark.long) for seed in (1, 2)),
        pytest.param("gvisor", 2, marks=pytest.mark.long),
    ],
)
def test_what_stays_is_whole_and_the_room_of_what_goes_comes_back(
    client: Client, instance: Instance, runtime: str, seed: int
) -> None:
    order = random.Random(seed)
    options: Any = {"template": "test", "runtime": runtime, "memory": "128MiB", "disk": "512MiB", "client": client}
    keeper = Sandbox.create(**options)
    assert keeper.exec(["python3", "-c", CHANGE.format(seed=0)]).exit_code == 0
    kept = keeper.snapshot("kept")
    truth = sums(keeper)
    before = used(client)
    worker = keeper.fork(snapshot=kept)[0]
    truths: dict[str, str] = {}
    for number in range(12):
        assert worker.exec(["python3", "-c", CHANGE.format(seed=100 * seed + number)]).exit_code == 0
        full = runtime == "gvisor" and number % 4 == 1
        truths[worker.snapshot(f"s{number}", kind="full" if full else "disk").id] = sums(worker)
    names = list(truths)
    forks = [worker.fork(snapshot=one, kind="disk")[0] for one in order.sample(names, 3)]
    assert used(client) - before > 30 << 20
    order.shuffle(names)
    while len(names) > 3:
        worker.snapshots.delete(names.pop())
    for one in names:
        worker.rollback(one, kind="disk", keep_before=False)
        assert sums(worker) == truths[one]
    whole = {fork.id: sums(fork) for fork in forks}
    assert set(whole.values()) <= set(truths.values())
    worker.delete()
    assert {fork.id: sums(fork) for fork in forks} == whole
    for fork in forks:
        fork.delete()
    until(lambda: used(client) - before <= _NEAR * before, 60, wait=0.2)
    keeper.rollback(kept, keep_before=False)
    assert sums(keeper) == truth
    assert instance.fsck() == []
