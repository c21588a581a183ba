"""Runs what a page of the documentation tells its reader to type, and compares what it shows.

    ```sh run            goes to one bash of the page, with -e; so does ```python run, as a program of its own
    ```output            what the block before prints; `...` stands for anything within a line, alone for any lines

The bash has a terminal, as the reader has, so what is compared is what a person sees.
"""

import os
import pty
import re
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```([a-z]*)( run)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MARK = "\x1e"
_TOO_LONG = 240.0


@dataclass
class Step:
    """One block that is run; `expected` is None where the page shows no output."""

    kind: str
    text: str
    line: int
    expected: str | None = None


def steps(page: Path) -> list[Step]:
    text = page.read_text()
    found: list[Step] = []
    fresh = False
    for match in _FENCE.finditer(text):
        kind, run, body = match[1], match[2], match[3]
        if kind == "output":
            assert fresh, f"{page.name}: an output that follows no block that is run"
            found[-1].expected = body
            fresh = False
        else:
            fresh = bool(run)
            if run:
                found.append(Step(kind, body, text[: match.start()].count("\n") + 2))
    return found


def run_page(page: Path, folder: Path, env: dict[str, str]) -> None:
    """Raises AssertionError with the block, what was expected and what came."""
    todo = steps(page)
    assert todo, f"{page.name} has nothing to run"
    script = folder / f"{page.stem}.bash"
    script.write_text("set -e -o pipefail\n" + "".join(_bash(step) for step in todo))
    code, shown = _on_terminal(["bash", str(script)], folder, env)
    outputs = [seen(part) for part in shown.split(_MARK)[1:]]
    for step, output in zip(todo, outputs, strict=False):
        if step.expected is not None:
            assert matches(step.expected, output), (
                f"{page}:{step.line}\n{step.text}\n--- expected\n{step.expected}\n--- came\n{output}"
            )
    where = todo[max(0, len(outputs) - 1)]
    assert code == 0, (
        f"{page}:{where.line} ended with {code}\n{where.text}\n--- came\n{outputs[-1] if outputs else shown}"
    )
    assert len(outputs) == len(todo)


def _bash(step: Step) -> str:
    text = step.text if step.kind == "sh" else f"python3 - <<'END_OF_BLOCK'\n{step.text}END_OF_BLOCK\n"
    return f"printf '\\036'\n{text}"


def _on_terminal(argv: list[str], folder: Path, env: dict[str, str]) -> tuple[int, str]:
    leader, follower = pty.openpty()
    try:
        child = subprocess.Popen(
            argv,
            cwd=folder,
            env={**env, "COLUMNS": "160", "TERM": "xterm"},
            stdin=subprocess.DEVNULL,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
        )
    finally:
        os.close(follower)
    parts: list[bytes] = []
    deadline = time.monotonic() + _TOO_LONG
    try:
        while time.monotonic() < deadline:
            if not select.select([leader], [], [], 1.0)[0]:
                if child.poll() is not None:
                    break  # something it started in the background still has the terminal
                continue
            try:
                data = os.read(leader, 1 << 16)
            except OSError:  # EIO: the last one that had the terminal is gone
                break
            parts.append(data)
        else:
            child.kill()
    finally:
        os.close(leader)
    return child.wait(10), b"".join(parts).decode(errors="replace")


def seen(raw: str) -> str:
    """What a terminal shows in the end: lines that were drawn over are gone."""
    lines = raw.replace("\r\n", "\n").split("\n")
    return _COLOUR.sub("", "\n".join(line.rpartition("\r\x1b[K")[2] for line in lines))


def matches(expected: str, came: str) -> bool:
    pattern = ""
    for line in expected.strip("\n").split("\n"):
        if line.strip() == "...":
            pattern += r"(?:[^\n]*\n)*"
        else:
            pattern += r"[^\n]*".join(map(re.escape, line.rstrip().split("..."))) + r"[ ]*\n"
    return bool(re.fullmatch(pattern, came.strip("\n") + "\n"))
