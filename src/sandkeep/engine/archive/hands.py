"""Threads of the confined program, for what takes its time: names, compression and seals of pieces, and the way back.

All of that lets go of the interpreter's lock. Only the thread that has made them reads, writes and decides: it hands out
work and takes the results in the same order, so that nothing depends on which of them was first.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_MOST = 4
_EACH = 3
"""Pieces under way for each of them: this bounds the memory."""


class Hands:
    """They all start here, since nothing can be started after the program has confined itself."""

    def __init__(self, count: int | None = None) -> None:
        """count: 0 does the work where it is handed out."""
        count = min(_MOST, len(os.sched_getaffinity(0))) if count is None else count
        self.room = max(1, count * _EACH)
        self._work: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        self._threads = [Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def begin(self, do: Callable[..., T], *args: Any) -> "Future[T]":
        future: Future[T] = Future()
        if self._threads:
            self._work.put((future, do, args))
        else:
            _do(future, do, args)
        return future

    def in_order(self, do: Callable[[T], R], work: Iterable[T]) -> Iterator[R]:
        """Some of it at once; raises what the first that fails has raised, after the results before it."""
        under_way: deque[Future[R]] = deque()
        for one in work:
            under_way.append(self.begin(do, one))
            if len(under_way) >= self.room:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def end(self) -> None:
        """What is under way is done first."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while work := self._work.get():
            _do(*work)


def _do(future: "Future[Any]", do: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        future.set_result(do(*args))
    except BaseException as error:  # whoever takes the result gets it
        future.set_exception(error)
