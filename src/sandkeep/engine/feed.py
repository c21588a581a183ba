"""The feed of facts: durable, in order, kept until acknowledged."""

import contextlib
import errno
import json
import os
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio

from sandkeep.contracts.clock import Clock
from sandkeep.domain.node import Fact, FactKind
from sandkeep.engine.storage import writing
from sandkeep.lib.files import NO_FILE, read_plain, set_aside, write_durably
from sandkeep.telemetry.log import log

_COMPACT_AFTER = 1000
_GAP = 1_000_000
"""Numbers left out when nobody knows how far they had come: a server waits for those above what it has seen."""
_KEPT = 10_000
"""Without a server for long. What is lost then is news alone: server and node are compared when it is back."""


class Feed:
    """One file of JSON lines. `tell` is durable when it returns."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._facts: list[Fact] = []
        self._acknowledged = 0
        self._last = 0
        self._dropped = 0
        self._news = anyio.Event()
        self._closed = False
        self._fd = -1

    def open(self) -> None:
        damaged = 0
        for line in filter(None, self._lines()):
            try:
                self._take(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError):
                damaged += 1  # the torn end of a crash, or worse
        if damaged > 1 or (damaged and not self._last):
            log("feed.damaged", "error", lines=damaged)
            self._last += _GAP
        self._facts = [fact for fact in self._facts if fact.seq > self._acknowledged]
        self._compact()

    def _lines(self) -> list[bytes]:
        try:
            return read_plain(self._path).split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            log("feed.damaged", "error", error=str(error), aside=set_aside(self._path).name)
            self._last = _GAP
            return []

    def _take(self, data: dict[str, Any]) -> None:
        if "acknowledged" in data:
            self._acknowledged, self._last = int(data["acknowledged"]), max(self._last, int(data["last"]))
            return
        fact = Fact(**{**data, "kind": FactKind(data["kind"]), "seq": int(data["seq"])})
        self._facts.append(fact)
        self._last = max(self._last, fact.seq)

    def _compact(self) -> None:
        head = json.dumps({"acknowledged": self._acknowledged, "last": self._last}).encode() + b"\n"
        write_durably(self._path, head + b"".join(_line(fact) for fact in self._facts))
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._dropped = 0

    def tell(self, kind: FactKind, sandbox_id: str | None, epoch: int | None = None, **data: Any) -> Fact:
        """Raises NoCapacity, StorageFailed: it is then as if nothing had been told."""
        fact = Fact(self._last + 1, self._clock.now(), kind, sandbox_id, epoch, data)
        with writing("the feed"):
            self._append(_line(fact), durably=True)
        self._last = fact.seq
        self._facts.append(fact)
        if len(self._facts) > _KEPT + _COMPACT_AFTER:
            self._facts = self._facts[-_KEPT:]
            self._compact()
        self._news.set()
        self._news = anyio.Event()
        return fact

    def _append(self, line: bytes, *, durably: bool) -> None:
        """All of it or nothing: half a line would spoil the next one."""
        size = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durably:
                os.fsync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
            raise

    def acknowledge(self, seq: int) -> None:
        before = len(self._facts)
        self._acknowledged = max(self._acknowledged, min(seq, self._last))
        self._facts = [fact for fact in self._facts if fact.seq > self._acknowledged]
        self._dropped += before - len(self._facts)
        with contextlib.suppress(OSError):  # and the next one writes it
            if self._dropped >= _COMPACT_AFTER:
                self._compact()
            elif before != len(self._facts):
                # Not synced: an acknowledgement that is lost means that facts come twice, which a reader must bear anyway.
                head = json.dumps({"acknowledged": self._acknowledged, "last": self._last}).encode()
                self._append(head + b"\n", durably=False)

    def close(self) -> None:
        """Every watch ends."""
        self._closed = True
        self._news.set()

    async def watch(self, after_seq: int) -> AsyncIterator[Fact]:
        seen = after_seq
        while not self._closed:
            news = self._news
            for fact in list(self._facts):
                if fact.seq > seen:
                    seen = fact.seq
                    yield fact
            await news.wait()


def _line(fact: Fact) -> bytes:
    return json.dumps(asdict(fact), separators=(",", ":")).encode() + b"\n"
