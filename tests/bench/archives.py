"""Archive and wake: ours and tar of the same bytes in turns. Ours also seals, and reads everything back before it says so."""

import os
import shutil
import subprocess
from pathlib import Path

from bench.bare import Machine
from bench.lifecycle import Bench
from sandkeep.sdk import Sandbox

_LARGE = 1 << 30
_CHANGE = 23_000_000
_PIECE = 16 << 20
_SHARE = 4


def archives(bench: Bench) -> None:
    sandbox, machine = bench.sandbox(), bench.machine()
    there, file = machine.plan.root / "home/user", machine.plan.root.with_name("archive.tar")
    changed = there / "changed"

    def change() -> None:
        _write(sandbox, "changed", _CHANGE)
        sandbox.stop()

    _write(sandbox, "changed", _CHANGE)
    sandbox.stop()
    sandbox.archive()
    bench.alternate(
        "archive-23",
        sandbox.archive,
        lambda: _pack(changed, file),
        before_ours=change,
        before_bare=lambda: changed.write_bytes(os.urandom(_CHANGE)),
        share=_SHARE,
    )
    large = there / "large"
    _fill(large)
    fresh: list[Sandbox] = []

    def another() -> None:
        """One that has no archive yet."""
        while fresh:
            fresh.pop().delete()
        fresh.append(bench.sandbox())
        _write(fresh[0], "large", _LARGE)
        fresh[0].stop()

    bench.alternate(
        "archive-1000",
        lambda: fresh[0].archive(),
        lambda: _pack(large, file),
        before_ours=another,
        share=_SHARE,
    )

    def away() -> None:
        if fresh[0].phase != "archived":
            fresh[0].archive()

    bench.alternate(
        "wake-1000",
        lambda: fresh[0].wake(),
        lambda: _unpack(file, there / "again"),
        before_ours=away,
        before_bare=lambda: shutil.rmtree(there / "again", ignore_errors=True),
        share=_SHARE,
    )
    for one in (sandbox, fresh[0]):
        one.delete()
    _end(machine, file)


def _end(machine: Machine, file: Path) -> None:
    file.unlink()
    machine.remove()


def _write(sandbox: Sandbox, name: str, size: int) -> None:
    done = sandbox.exec(["sh", "-c", f"head -c {size} /dev/urandom > /home/user/{name}; sync"], timeout=300)
    assert done.exit_code == 0, done.stderr


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        for _ in range(_LARGE // _PIECE):
            file.write(os.urandom(_PIECE))
        os.fsync(file.fileno())


def _pack(path: Path, file: Path) -> None:
    subprocess.run(["tar", "--create", "--file", str(file), "-C", str(path.parent), path.name], check=True)
    with file.open("rb") as made:
        os.fsync(made.fileno())


def _unpack(file: Path, folder: Path) -> None:
    folder.mkdir()
    subprocess.run(["tar", "--extract", "--file", str(file), "-C", str(folder)], check=True)
    os.sync()
