"""Many snapshots are deleted: until the pool has their room again. Bare: the subvolumes deleted, and the same wait."""

import os
from pathlib import Path

from bench.lifecycle import Bench
from sandkeep.sdk import Sandbox
from support.instance import until

COUNT = 200
_NEAR = 0.01
_WRITE = "head -c 500000 /dev/urandom > /home/user/data && sync"


def space_comes_back(bench: Bench) -> None:
    sandbox, machine = bench.sandbox(), bench.machine()
    pool = machine.plan.root.parent
    level = 0

    def fill_ours() -> None:
        nonlocal level
        level = used(pool)
        for _ in range(COUNT):
            _fill(sandbox)

    def fill_bare() -> None:
        nonlocal level
        level = used(pool)
        for _ in range(COUNT):
            (machine.plan.root / "home/user/data").write_bytes(os.urandom(500_000))
            machine.keep()

    def ours() -> None:
        for kept in sandbox.snapshots.list():
            sandbox.snapshots.delete(kept)
        until(lambda: used(pool) <= level * (1 + _NEAR), 120, wait=0.01)

    def bare() -> None:
        machine.drop_kept()
        until(lambda: used(pool) <= level * (1 + _NEAR), 120, wait=0.01)

    bench.alternate("space", ours, bare, before_ours=fill_ours, before_bare=fill_bare, share=10)
    sandbox.delete()
    machine.remove()


def _fill(sandbox: Sandbox) -> None:
    assert sandbox.exec(_WRITE).exit_code == 0
    sandbox.snapshot()


def used(pool: Path) -> int:
    space = os.statvfs(pool)
    return (space.f_blocks - space.f_bfree) * space.f_frsize
