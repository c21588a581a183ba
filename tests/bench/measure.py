"""Times and what is made of them: series of both sides, percentiles, verdicts, the table."""

import json
import math
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.goals import ROWS, Goal, Row, Unit

OURS, BARE = "ours", "bare"
_HEAD = ("runtime", "what", "p50", "p95", "bare p50", "p95", "ratio", "goal", "")


def say(text: str) -> None:
    """Progress, for people: on stderr, so that the table alone is the output."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def percentile(values: list[float], share: float) -> float:
    """Nearest rank, so that every figure is one that was measured; the median of an even number is the usual one."""
    ordered = sorted(values)
    if share == 0.5:
        return statistics.median(ordered)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass
class Results:
    """Every figure by row, runtime and side, in the order measured."""

    series: dict[tuple[str, str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, key: str, runtime: str, side: str, value: float) -> None:
        self.series[(key, runtime, side)].append(value)

    @contextmanager
    def timed(self, key: str, runtime: str, side: str) -> Iterator[None]:
        """Milliseconds of the body; nothing when it raises."""
        begun = time.perf_counter()
        yield
        self.add(key, runtime, side, (time.perf_counter() - begun) * 1000)

    def forget(self) -> None:
        """After a round that only warmed caches."""
        self.series.clear()

    def lines(self) -> list["Line"]:
        found = []
        for row in ROWS:
            for runtime in ("gvisor", "runc"):
                ours = self.series.get((row.key, runtime, OURS))
                if ours:
                    found.append(Line(row, runtime, ours, self.series.get((row.key, runtime, BARE)) or []))
        return found


@dataclass(frozen=True)
class Line:
    row: Row
    runtime: str
    ours: list[float]
    bare: list[float]

    @property
    def ratio(self) -> float | None:
        return percentile(self.ours, 0.5) / percentile(self.bare, 0.5) if self.bare else None

    @property
    def goal(self) -> Goal:
        return self.row.goal(self.runtime) or Goal()

    @property
    def met(self) -> bool | None:
        """None without a goal. Where a ratio stands beside a time, the ratio decides."""
        high = self.row.unit is Unit.RATE
        if self.goal.ratio is not None and self.ratio is not None:
            return self.ratio >= self.goal.ratio if high else self.ratio <= self.goal.ratio
        if self.goal.limit is None:
            return None
        found = percentile(self.ours, 0.5)
        return found >= self.goal.limit if high else found <= self.goal.limit

    def cells(self) -> tuple[str, ...]:
        # the bad tail of a rate is its low end
        tail = 0.05 if self.row.unit is Unit.RATE else 0.95
        bare = (_number(percentile(self.bare, 0.5)), _number(percentile(self.bare, tail))) if self.bare else ("", "")
        sign = ">=" if self.row.unit is Unit.RATE else "<="
        wanted = [f"{sign} {self.goal.limit:g}"] if self.goal.limit is not None else []
        wanted += [f"{sign} {self.goal.ratio:g}x"] if self.goal.ratio is not None else []
        return (
            self.runtime,
            f"{self.row.title} [{self.row.unit}]",
            _number(percentile(self.ours, 0.5)),
            _number(percentile(self.ours, tail)),
            *bare,
            f"{self.ratio:.2f}x" if self.ratio is not None else "",
            ", ".join(wanted),
            {True: "met", False: "MISSED", None: ""}[self.met],
        )


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def table(lines: list[Line]) -> str:
    rows = [_HEAD, *(line.cells() for line in lines)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(_HEAD))]
    left = {0, 1, 7, 8}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def write_json(path: Path, lines: list[Line]) -> None:
    """What was measured, every single figure, and on what kind of machine."""
    rows: list[dict[str, Any]] = [
        {
            "row": line.row.key,
            "runtime": line.runtime,
            "unit": line.row.unit,
            "p50": percentile(line.ours, 0.5),
            "p95": percentile(line.ours, 0.95),
            "bare_p50": percentile(line.bare, 0.5) if line.bare else None,
            "ratio": line.ratio,
            "goal": {"limit": line.goal.limit, "ratio": line.goal.ratio},
            "met": line.met,
            "ours": line.ours,
            "bare": line.bare,
        }
        for line in lines
    ]
    host = {"cpus": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()[0]}
    path.write_text(json.dumps({"at": time.time(), "host": host, "rows": rows}, indent=1) + "\n")


def alternating(rounds: int, one: Callable[[], None], other: Callable[[], None]) -> None:
    """Both sides in every round, in turns the one or the other first: a noise of the machine meets them alike."""
    for index in range(rounds):
        first, second = (one, other) if index % 2 == 0 else (other, one)
        first()
        second()
