"""`make soak`: thousands of whole lives of sandboxes; what each leaves behind, and whether the daemons grow. Needs root.

In pieces: each is a line in tests/results/soak.jsonl, and those made with these very sources count towards the goal.
"""

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from sandkeep.sdk import Client, Sandbox
from support import netns
from support.census import left_over, quota_groups, same_again, settled_census
from support.instance import Instance, build_cache, client_of, until
from torture.results import Results

AT_ONCE = 4
_PIECE = {"gvisor": 100, "runc": 200}
_SAMPLE_EVERY = 10
_SETTLE = 30.0


@dataclass(frozen=True)
class Piece:
    """leaked: things on the host that were not there before; slopes: bytes that a daemon grew by in each cycle."""

    cycles: int
    leaked: int
    server: float
    runner: float
    what: str = ""


def cycle(client: Client, runtime: str) -> None:
    """All that a sandbox can go through."""
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


def short_cycle(client: Client, runtime: str) -> None:
    """From nothing to nothing, with one change of phase between."""
    sandbox = Sandbox.create(template="test", runtime=runtime, memory="128MiB", client=client)
    assert sandbox.exec("echo 1 > file").exit_code == 0
    sandbox.pause(hold="memory")
    sandbox.resume()
    sandbox.delete()


def cycles(client: Client, runtime: str, count: int, *, short: bool = False) -> Iterator[int]:
    """Several at once; yields how many are done."""
    one = short_cycle if short else cycle
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number, _ in enumerate(pool.map(lambda _: one(client, runtime), range(count)), 1):
            yield number


def resident(instance: Instance, daemon: str) -> int:
    """Bytes of a daemon's own in memory: what it shares with others is not counted."""
    for line in Path(f"/proc/{instance.pid(daemon)}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"the kernel says nothing about the memory of the {daemon}")


def slope(samples: list[tuple[int, int]]) -> float:
    """Least squares: by how much the second grows with the first. The first third is warming up and left out."""
    kept = samples[len(samples) // 3 :]
    if len(kept) < 2:
        return 0.0
    x_mean, y_mean = (sum(column) / len(kept) for column in zip(*kept, strict=True))
    spread = sum((x - x_mean) ** 2 for x, _ in kept)
    return sum((x - x_mean) * (y - y_mean) for x, y in kept) / spread


def run_piece(instance: Instance, client: Client, runtime: str, count: int, *, short: bool = False) -> Piece:
    for _ in cycles(client, runtime, AT_ONCE, short=short):
        pass  # what is opened once, at first use, is not a leak
    before = settled_census(instance)
    samples: dict[str, list[tuple[int, int]]] = {"server": [], "runner": []}
    for done in cycles(client, runtime, count, short=short):
        if done % _SAMPLE_EVERY == 0:
            for daemon, seen in samples.items():
                seen.append((done, resident(instance, daemon)))
    what = ""
    try:
        same_again(instance, before, _SETTLE)
    except AssertionError as error:
        what = str(error)
    findings = instance.fsck()
    leaked = len(left_over(instance, before)) + len(findings)
    if findings:
        what += f" fsck: {findings}"
    return Piece(count, leaked, slope(samples["server"]), slope(samples["runner"]), what)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--cycles", type=int, default=5000, help="in all, with what was done before")
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="end after so long; the next run goes on")
    asked = parser.parse_args()
    build_cache("test")  # needs a network when it is missing
    netns.private_network()  # before any thread
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as ctrl-c: what was made is removed
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell began it in the background
    results = Results("soak")
    end = time.monotonic() + asked.minutes * 60
    with Instance.made("test") as instance, client_of(instance) as client:
        number = len(results.these)
        while sum(line["cycles"] for line in results.these) < asked.cycles and time.monotonic() < end:
            runtime = ("runc", "gvisor")[number % 2]
            begun = time.monotonic()
            piece = run_piece(instance, client, runtime, _PIECE[runtime])
            results.add(
                runtime=runtime, cycles=piece.cycles, leaked=piece.leaked, server=round(piece.server),
                runner=round(piece.runner), s=round(time.monotonic() - begun), what=piece.what[:300],
            )  # fmt: skip
            print(results.these[-1], file=sys.stderr, flush=True)
            number += 1
        instance.kill("runner")  # its start sweeps what deletions leave in the pool
        instance.ensure_up()
        until(lambda: quota_groups(instance) == [], 60, wait=0.5)
    lines = results.these
    count = sum(line["cycles"] for line in lines)
    leaked = sum(line["leaked"] for line in lines)
    growth = {name: sum(line[name] * line["cycles"] for line in lines) / max(1, count) for name in ("server", "runner")}
    print(
        f"cycles {count}, leaked {leaked} ({leaked / max(1, count):.4f} a cycle), "
        f"server {growth['server']:+.0f} bytes a cycle, runner {growth['runner']:+.0f} bytes a cycle"
    )
    return 1 if leaked else 0


if __name__ == "__main__":
    sys.exit(main())
