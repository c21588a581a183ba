"""Snapshots, rollback and forks of a sandbox with 10,000 files and 200 MB: ours and the bare primitives in turns."""

import os
from concurrent.futures import ThreadPoolExecutor

from bench.bare import Machine
from bench.lifecycle import Bench
from sandkeep.sdk import Sandbox

FORKS = 10
_FILES, _SIZE = 10_000, 20_000
_CHANGES = 100
_FILL = """
import os
os.makedirs("/home/user/tree", exist_ok=True)
for number in range({count}):
    with open(f"/home/user/tree/{{number}}", "wb") as file:
        file.write(os.urandom({size}))
os.sync()
"""
_DIRTY = "head -c 20000000 /dev/urandom > /home/user/dirty"


def time_travel(bench: Bench) -> None:
    sandbox, machine = bench.sandbox(), bench.machine()
    done = sandbox.exec(["python3", "-c", _FILL.format(count=_FILES, size=_SIZE)], timeout=300)
    assert done.exit_code == 0, done.stderr
    tree = machine.plan.root / "home/user/tree"
    tree.mkdir()
    for number in range(_FILES):
        (tree / str(number)).write_bytes(os.urandom(_SIZE))
    os.sync()
    dirty = machine.plan.root / "home/user/dirty"
    bench.alternate("snapshot", sandbox.snapshot, machine.keep)
    bench.alternate(
        "snapshot-20",
        sandbox.snapshot,
        machine.keep,
        before_ours=lambda: sandbox.exec(_DIRTY),
        before_bare=lambda: dirty.write_bytes(os.urandom(20_000_000)),
    )
    sandbox.snapshot("base")
    _diff(bench, sandbox, machine)
    _forks(bench, sandbox, machine, "fork-1", 1)
    _forks(bench, sandbox, machine, "fork-10", FORKS)

    def back() -> None:
        sandbox.rollback("base")
        assert sandbox.exec(["true"]).exit_code == 0

    def back_bare() -> None:
        machine.keep()
        machine.delete()
        machine.end()
        machine.group.remove()
        machine.make_group()
        machine.start()
        machine.exec("true")

    bench.alternate("rollback", back, back_bare)
    sandbox.delete()
    machine.remove()


def _diff(bench: Bench, sandbox: Sandbox, machine: Machine) -> None:
    """100 of the 10,000 files are other ones. Bare: `btrfs send` without data between the two, its stream counted."""
    done = sandbox.exec(
        ["sh", "-c", f"cd /home/user/tree && for n in $(seq {_CHANGES}); do echo other > $n; done; sync"]
    )
    assert done.exit_code == 0, done.stderr
    sandbox.snapshot("changed")
    before = machine.keep()
    for number in range(1, _CHANGES + 1):
        (machine.plan.root / "home/user/tree" / str(number)).write_text("other")
    after = machine.keep()

    def ours() -> None:
        found = sandbox.diff("base", "changed")
        assert found.fast
        assert found.counts.changed >= _CHANGES

    bench.alternate("diff", ours, lambda: machine.difference(before, after))
    bench.alternate("diff-now", lambda: sandbox.diff("base"), lambda: machine.difference(before, machine.keep()))


def _forks(bench: Bench, sandbox: Sandbox, machine: Machine, key: str, count: int) -> None:
    made: list[Sandbox] = []
    machines: list[Machine] = []

    def ours() -> None:
        made[:] = sandbox.fork(count, snapshot="base")
        with ThreadPoolExecutor(count) as threads:
            assert not any(done.exit_code for done in threads.map(lambda fork: fork.exec(["true"]), made))

    def one(fresh: Machine) -> None:
        fresh.clone(machine.plan.root)
        fresh.start()
        fresh.exec("true")

    def bare() -> None:
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(one, machines))

    def clear() -> None:
        for fork in made:
            fork.delete()
        for fresh in machines:
            fresh.remove()
        made.clear()
        machines.clear()

    bench.alternate(
        key,
        ours,
        bare,
        before_bare=lambda: machines.extend(bench.bare.machine() for _ in range(count)),
        after=clear,
        share=1 if count == 1 else 4,
    )
