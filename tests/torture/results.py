"""Results files of long runs: one JSON line each, committed; what was done with these very sources is not done again."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "results"
_SOURCES = ("src", "agent", "tests/support", "tests/torture")


def stamp() -> str:
    """Of the product and of the harness."""
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".go"} and "__pycache__" not in path.parts:
                digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


class Results:
    def __init__(self, name: str) -> None:
        self._file = FOLDER / f"{name}.jsonl"
        self.stamp = stamp()
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self.all: list[dict[str, Any]] = [json.loads(line) for line in lines]

    @property
    def these(self) -> list[dict[str, Any]]:
        """Of these sources."""
        return [line for line in self.all if line["stamp"] == self.stamp]

    def add(self, **facts: Any) -> None:
        line = {"stamp": self.stamp, "at": int(time.time()), **{k: v for k, v in facts.items() if v not in ("", None)}}
        self.all.append(line)
        FOLDER.mkdir(exist_ok=True)
        with open(self._file, "a") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
