"""What people see: tables, sizes, ages, progress. Nothing here is for machines; they use --json."""

import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING

from sandkeep.cli.printable import printable

if TYPE_CHECKING:
    from sandkeep.cli.session import Session

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their content, no lines."""
    lines = [heads, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def size(count: float | None) -> str:
    if count is None:
        return "-"
    value, step = float(count), 0
    while value >= 1024 and step < len(_UNITS) - 1:
        value, step = value / 1024, step + 1
    return f"{value:.0f} {_UNITS[step]}" if value >= 10 or value == int(value) else f"{value:.1f} {_UNITS[step]}"


def counted(count: int, noun: str) -> str:
    """1 file, 2 files."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def span(seconds: float) -> str:
    """12s, 5m, 3h, 2d."""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def brief(seconds: float) -> str:
    """12 ms, 1.5 s."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def age(at: datetime | None) -> str:
    return "-" if at is None else span((datetime.now(UTC) - at).total_seconds())


def clock(at: datetime | None) -> str:
    return "-" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


@contextmanager
def working(session: "Session", what: str) -> Iterator[None]:
    """Says on a terminal what takes so long, from the second second on."""
    if not session.live:
        yield
        return
    done = threading.Event()
    started = time.monotonic()

    def tell() -> None:
        while not done.wait(1.0):
            _line(f"{what} ... {span(time.monotonic() - started)}")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if time.monotonic() - started >= 1.0:
            _line("")


class Progress:
    """Bytes that went by, drawn on a terminal ten times a second at most."""

    def __init__(self, session: "Session", what: str, total: int | None = None) -> None:
        self._live = session.live
        self._what, self._total = what, total
        self._started = time.monotonic()
        self._drawn = 0.0
        self.count = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live and self._drawn:
            _line("")

    def add(self, count: int) -> None:
        self.count += count
        now = time.monotonic()
        if not self._live or now - max(self._drawn, self._started + 0.4) < 0.1:
            return
        self._drawn = now
        rate = self.count / max(0.001, now - self._started)
        part = f" {100 * self.count // self._total}%" if self._total else ""
        _line(f"{self._what}{part} {size(self.count)}, {size(rate)}/s")


def _line(text: str) -> None:
    columns = shutil.get_terminal_size().columns - 1
    sys.stderr.write("\r\x1b[K" + printable(text)[:columns])
    sys.stderr.flush()
