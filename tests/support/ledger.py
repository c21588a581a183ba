"""`make test-all` can be interrupted and continued: what passed with these very sources is not run again.

Each test that ends is a line in tests/results/all.jsonl, which is committed: {stamp, test, outcome, seconds, at}.
"""

import hashlib
import json
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "results" / "all.jsonl"


def stamp() -> str:
    """Changes with every source that a test could depend on."""
    digest = hashlib.sha256()
    for folder in ("src", "agent", "tests", "docs"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".go", ".md", ".json"} and path != RESULTS and "__pycache__" not in path.parts:
                digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Ledger:
    """A pytest plugin."""

    def __init__(self) -> None:
        self._stamp = stamp()
        lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
        entries = [json.loads(line) for line in lines]
        self._passed = {e["test"] for e in entries if e["stamp"] == self._stamp and e["outcome"] == "passed"}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        done = [item for item in items if item.nodeid in self._passed]
        if done:
            config.hook.pytest_deselected(items=done)
            items[:] = [item for item in items if item.nodeid not in self._passed]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        RESULTS.parent.mkdir(exist_ok=True)
        line = {
            "stamp": self._stamp,
            "test": report.nodeid,
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
            "at": int(time.time()),
        }
        with open(RESULTS, "a") as file:
            file.write(json.dumps(line) + "\n")
