"""`make torture`: every journalled step of every operation on every runtime, crossed with every death. Needs root.

Goes on where it was interrupted: what is in tests/results/torture.jsonl for these very sources counts. `--rounds` asks for
the whole matrix so many times, `--minutes` ends it, `--only` takes a part of a trial's name.
"""

import argparse
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from support import netns
from support.faults.stand import Stand
from support.instance import build_cache
from torture import trial
from torture.matrix import SCENARIOS, Cell, CellAim, Scenario, cells, journalled_lines
from torture.results import ROOT, Results

_THOROUGH = 10
"""Trials between two questions to the bystanders' witnesses, which remember their longest gap."""
_EVIDENCE = ROOT / "build" / "torture"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measured(stand: Stand, only: tuple[str, ...]) -> dict[Cell, float]:
    """The matrix, from a clean run of each operation. Fails when a line that journals was reached by none."""
    found: dict[Cell, float] = {}
    reached: set[str] = set()
    for scenario in SCENARIOS:
        for runtime in scenario.runtimes:
            name = f"{runtime}/{scenario.name}/"
            if not (name.startswith(only) or any(one.startswith(name) for one in only)):
                continue
            seen = trial.record(stand, runtime, scenario)
            reached |= {one.point.site for one in seen}
            found |= cells(runtime, scenario, seen)
    unreached = journalled_lines() - reached
    if unreached and only == ("",):
        raise AssertionError(f"the harness reaches no point of these lines of the engine: {sorted(unreached)}")
    return {cell: lasts for cell, lasts in found.items() if cell.key.startswith(only)}


def totals(lines: list[dict[str, object]]) -> str:
    counts = Counter(str(line["out"]) for line in lines)
    trials = sum(count for out, count in counts.items() if out != "void")
    return f"trials {trials}, " + ", ".join(f"{kind} {counts[kind]}" for kind in trial.KINDS)


class Torture:
    def __init__(self, asked: argparse.Namespace) -> None:
        self._asked = asked
        self._results = Results("torture")
        self._seed = asked.seed if asked.seed is not None else random.randrange(1 << 30)
        self._chance = random.Random(self._seed)
        self._end = time.monotonic() + asked.minutes * 60
        self._number = 0

    def run(self) -> int:
        say(f"sources {self._results.stamp}, seed {self._seed}")
        failed = 0
        queue: list[Cell] | None = None
        lasts: dict[Cell, float] = {}
        while queue is None or (queue and time.monotonic() < self._end):
            with Stand.made() as stand:
                if queue is None:
                    lasts = measured(stand, tuple(self._asked.only.split(",")))
                    queue = self._queue(lasts)
                    say(f"the matrix has {len(lasts)} cells; {len(queue)} trials to make")
                bad = self._until_one_fails(stand, queue, lasts)
            failed += bad
            if bad and self._asked.stop:
                break
        print(totals(self._results.these))
        return 1 if failed else 0

    def _queue(self, lasts: dict[Cell, float]) -> list[Cell]:
        """Last first. Whole rounds, each in an order of its own."""
        done = Counter(str(line["trial"]) for line in self._results.these)
        rounds = []
        for number in range(self._asked.rounds):
            wanted = [cell for cell in lasts if done[cell.key] <= number]
            self._chance.shuffle(wanted)
            rounds += wanted
        return rounds[::-1]

    def _until_one_fails(self, stand: Stand, queue: list[Cell], lasts: dict[Cell, float]) -> int:
        """1 when one failed: what is left then is not what the next one should begin with."""
        scenarios: dict[str, Scenario] = {scenario.name: scenario for scenario in SCENARIOS}
        while queue and time.monotonic() < self._end:
            cell = queue.pop()
            self._number += 1
            outcome = trial.run(
                stand, cell.runtime, scenarios[cell.scenario], CellAim(cell, lasts[cell] * self._chance.random()),
                patient=self._chance.random() < 0.5, thorough=self._number % _THOROUGH == 0,
            )  # fmt: skip
            self._results.add(
                trial=cell.key, out=outcome.out, answer=outcome.answer, state=outcome.state, s=outcome.seconds,
                why=outcome.why[:300],
            )  # fmt: skip
            said = f"{outcome.answer}, {outcome.state}, {outcome.seconds:.1f} s"
            say(f"{self._number} {cell.key}: {outcome.out} ({said}) {outcome.why[:1500]}")
            if outcome.out in trial.KINDS:
                self._keep_evidence(stand, cell, outcome)
                return 1
        return 0

    def _keep_evidence(self, stand: Stand, cell: Cell, outcome: trial.Outcome) -> None:
        folder = _EVIDENCE / f"{int(time.time())}-{cell.key.replace('/', '_')}"
        folder.mkdir(parents=True)
        (folder / "why").write_text(f"{outcome}\n")
        for path in (stand.instance.root / "log").glob("*.log"):
            (folder / path.name).write_bytes(path.read_bytes()[-200_000:])


def main() -> int:
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="end after so long; the next run goes on")
    parser.add_argument("--rounds", type=int, default=1, help="how often each cell of the matrix is tried in all")
    parser.add_argument("--only", default="", help="trials whose names begin so, like runc/create/,gvisor/")
    parser.add_argument("--seed", type=int, help="of order and delays; printed")
    parser.add_argument("--stop", action="store_true", help="stop at the first failure")
    asked = parser.parse_args()
    build_cache("test")  # needs a network when it is missing
    netns.private_network()  # before any thread
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as ctrl-c: what was made is removed
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell began it in the background
    return Torture(asked).run()


if __name__ == "__main__":
    sys.exit(main())
