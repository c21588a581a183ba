"""What several clients were answered, and whether one order of their calls explains all of it.

A call takes effect at one moment between its beginning and its end. `explain` looks for such moments: an order in which a
sandbox that does one thing after the other would have given the same answers (the search of Wing and Gong).
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

TRANSITIONAL = ("starting", "pausing", "resuming", "stopping", "deleting")
SETTLED = ("running", "paused", "stopped")
GONE = "gone"


@dataclass(frozen=True)
class Call:
    """`status`: of the HTTP answer; `phase`: what it said the sandbox is."""

    verb: str
    began: float
    ended: float
    status: int
    phase: str = ""
    code: str = ""


@dataclass
class History:
    """Written by many threads."""

    calls: list[Call] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def record(self, verb: str, call: Callable[[], tuple[int, dict[str, object]]]) -> Call:
        began = time.monotonic()
        status, body = call()
        made = Call(verb, began, time.monotonic(), status, str(body.get("phase", "")), str(body.get("code", "")))
        with self._lock:
            self.calls.append(made)
        return made


def outcomes(state: str, call: Call) -> set[str]:
    """States in which a sandbox may be after a call that was answered so; empty: it cannot have answered so."""
    verb, status = call.verb, call.status
    if state == GONE:
        told = status == 404 or (verb == "get" and call.phase == "deleting")
        again = verb == "delete" and status == 204  # one deletion answers all who ask for it
        return {GONE} if told or again else set()
    if verb == "delete":
        return {GONE} if status == 204 else set()
    if status == 404:
        return set()
    if verb == "exec":
        # What failed may have woken it first: the command was cut by the next change.
        return {"running"} if status == 200 else {state, "running"}
    if verb == "get":
        return {state} if call.phase == state or call.phase in TRANSITIONAL else set()
    if verb == "update":
        return {state} if status == 200 and call.phase == state else set()
    refused = {("start", "paused"), ("resume", "stopped"), ("pause", "stopped")}
    if (verb, state) in refused:
        return {state} if status == 409 and call.code == "conflict" else set()
    after = {"start": "running", "resume": "running", "pause": "paused", "stop": "stopped"}[verb]
    return {after} if status == 200 and call.phase == after else set()


def explain(calls: list[Call], state: str) -> list[Call] | None:
    """An order that gives these answers, from this state on; None: there is none."""
    todo = sorted(calls, key=lambda call: call.began)
    order: list[Call] = []
    dead: set[tuple[frozenset[int], str]] = set()

    def search(left: frozenset[int], state: str) -> bool:
        if not left:
            return True
        if (left, state) in dead:
            return False
        first_end = min(todo[number].ended for number in left)
        for number in sorted(left):
            call = todo[number]
            if call.began > first_end:
                break  # another one had ended before this one began
            for after in outcomes(state, call):
                order.append(call)
                if search(left - {number}, after):
                    return True
                order.pop()
        dead.add((left, state))
        return False

    return order if search(frozenset(range(len(todo))), state) else None


def together(works: list[Callable[[], None]], rescue: Callable[[], None], patience: float = 3.0) -> None:
    """Run all of them at once, each in a thread. `rescue`, again and again, for those that wait for something that the
    others do no more. Raises the first error of any."""
    errors: list[BaseException] = []

    def body(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 120
    for thread in threads:
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(patience)
            if thread.is_alive():
                with suppress(OSError):
                    rescue()
        assert not thread.is_alive(), "a call never came back"
    if errors:
        raise errors[0]
