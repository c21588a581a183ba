"""The harness's side of the steps that support.faults.daemons tells: what is passed is written down, and one point may be
armed with an act (a kill) that happens while the runner stands still there."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Point:
    """moment: `before` the step's line is written, or `at`: after it and before the act. pid: of the runner."""

    subject: str
    verb: str
    step: str
    moment: str
    site: str
    pid: int = field(compare=False)

    @property
    def name(self) -> str:
        return f"{self.verb}.{self.step}/{self.moment}"


Act = Callable[[Point], None]
Takes = Callable[[Point], bool]


class Clock:
    def __init__(self, path: Path) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        self._listening.bind(str(path))
        self._listening.listen(16)
        self._lock = threading.Lock()
        self._armed: tuple[Takes, Act] | None = None
        self._acted = False
        self._always: Act | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def watch(self, act: Act | None) -> None:
        """`act` at every point from now on."""
        with self._lock:
            self._always = act

    def arm(self, takes: Takes, act: Act) -> None:
        """`act` at the first point that `takes` takes; it is shown all of them until `disarm`."""
        with self._lock:
            self._armed, self._acted = (takes, act), False

    def disarm(self) -> bool:
        """False: a point was taken, and its act is being done or was."""
        with self._lock:
            waits = self._armed is not None and not self._acted
            self._armed, self._always = None, None
            return waits

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._follow, args=(connection,), daemon=True).start()

    def _follow(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
            for line in lines:
                self._take(Point(**json.loads(line)))
                connection.sendall(b"go\n")

    def _take(self, point: Point) -> None:
        act = self._always
        with self._lock:
            if self._armed and self._armed[0](point) and not self._acted:
                act, self._acted = self._armed[1], True
        if act is not None:
            act(point)


def alive(pid: int | None) -> bool:
    """Also false for a zombie."""
    return pid is not None and os.path.exists(f"/proc/{pid}/exe")
