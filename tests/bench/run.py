"""`make bench`: the table of times and sizes, ours beside the bare primitives in the same run, and the goals.

Needs root and a quiet machine. `--quick` for a look; `--rows` and `--runtimes` for one thing; `--json` for the figures.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import archives, hibernation, lifecycle, memory, space, throughput, timetravel
from bench.bare import Bare
from bench.goals import ROWS
from bench.idle import idle
from bench.lifecycle import Bench
from bench.measure import Results, say, table, write_json
from support import netns
from support.instance import Instance, build_cache, client_of

_ROUNDS, _QUICK = 20, 5
_IDLE, _QUICK_IDLE = 100, 20
_PARTS: dict[str, tuple[str, ...]] = {
    "create": ("create", "delete"),
    "exec": ("exec",),
    "memory": ("pause-memory", "resume-memory"),
    "disk": tuple(f"{verb}-{size}" for size in hibernation.SIZES for verb in ("pause", "resume")),
    "stop": ("stop", "start"),
    "files": ("write", "read", "copy"),
    "burst": ("burst",),
    "time": ("snapshot", "snapshot-20", "diff", "diff-now", "fork-1", "fork-10", "rollback"),
    "felt": tuple(f"felt-{size}" for size in memory.SIZES),
    "twins": ("fork-memory-1", "fork-memory-10", "rollback-memory"),
    "hundred": ("fork-memory-100",),
    "space": ("space",),
    "archives": ("archive-23", "archive-1000", "wake-1000"),
    "idle": ("idle-memory", "idle-cpu", "server", "runner"),
}
"""What is measured together, and the rows that come of it."""
_GVISOR_ALONE = {"disk", "felt", "twins", "hundred"}
_NOT_QUICK = {"fork-memory-100", "space"}
"""Left out by --quick, unless they are named."""


def main() -> None:
    asked = _arguments()
    build_cache(asked.template)  # needs a network when it is missing
    netns.private_network()  # before any thread
    results = Results()
    try:
        # Live state on a tmpfs, as an installation has it: on a disk each rename over a file may wait for that disk.
        run_folder = Path(tempfile.mkdtemp(prefix="sandkeep-bench-", dir="/run"))
        run_folder.chmod(0o755)
        with Instance.made(asked.template, SANDKEEP_RUN_FOLDER=str(run_folder)) as instance:
            (instance.root / "run").symlink_to(run_folder)
            _measure(instance, asked, results)
    finally:  # also what was measured before something failed, or before ctrl-c
        lines = [line for line in results.lines() if line.row.key in asked.rows]
        print(table(lines))
        if asked.json:
            write_json(asked.json, lines)


def _measure(instance: Instance, asked: argparse.Namespace, results: Results) -> None:
    with asyncio.Runner() as loop, client_of(instance) as client:
        for runtime in asked.runtimes:
            limit = 640 << 20 if runtime == "gvisor" else 256 << 20
            with Bare(instance, runtime, loop, limit) as bare:
                bench = Bench(client, bare, runtime, results, asked.rounds, asked.template)
                lifecycle.create_and_delete(replace(bench, results=Results(), rounds=1))  # warms every cache
                for part, measure in _measures(bench, instance, asked.idle).items():
                    if set(_PARTS[part]) & asked.rows and not (part in _GVISOR_ALONE and runtime == "runc"):
                        say(f"{runtime}: {part}")
                        measure()


def _measures(bench: Bench, instance: Instance, count: int) -> dict[str, Callable[[], None]]:
    return {
        "create": lambda: lifecycle.create_and_delete(bench),
        "exec": lambda: lifecycle.exec_true(bench),
        "memory": lambda: lifecycle.hold_in_memory(bench),
        "disk": lambda: hibernation.pause_and_resume(bench),
        "stop": lambda: lifecycle.stop_and_start(bench),
        "files": lambda: throughput.files(bench, instance),
        "burst": lambda: lifecycle.burst(bench),
        "time": lambda: timetravel.time_travel(bench),
        "felt": lambda: memory.felt(bench),
        "twins": lambda: memory.twins(bench),
        "hundred": lambda: memory.hundred(bench),
        "space": lambda: space.space_comes_back(bench),
        "archives": lambda: archives.archives(bench),
        "idle": lambda: idle(bench, instance, count),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", help=f"comma-separated, of: {', '.join([*_PARTS, *(row.key for row in ROWS)])}")
    parser.add_argument("--runtimes", default="gvisor,runc", help="comma-separated")
    parser.add_argument("--rounds", type=int, help=f"of each measurement, default {_ROUNDS}")
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK} rounds, {_QUICK_IDLE} idle sandboxes")
    parser.add_argument("--idle", type=int, help=f"idle sandboxes, default {_IDLE}")
    parser.add_argument("--template", default="test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    asked = parser.parse_args()
    known = {row.key for row in ROWS}
    named = set(filter(None, (asked.rows or "").split(",")))
    asked.rows = {key for name in named for key in _PARTS.get(name, (name,))} or known - (
        _NOT_QUICK if asked.quick else set()
    )
    if unknown := asked.rows - known:
        parser.error(f"there are no rows {', '.join(sorted(unknown))}")
    asked.runtimes = [name for name in ("gvisor", "runc") if name in asked.runtimes.split(",")]
    asked.rounds = asked.rounds or (_QUICK if asked.quick else _ROUNDS)
    asked.idle = asked.idle or (_QUICK_IDLE if asked.quick else _IDLE)
    return asked


if __name__ == "__main__":
    main()
