"""What is tortured: each operation as a scenario with the state before and after it, and its points, found by one clean run.

A trial is named `runtime/scenario/verb.step/moment/victim`. Moments: `before` a step is journalled, `at`: journalled and
not yet done, `amid`: while it is being done. Just after a step is just before the next one, or before the journal closes.
"""

import ast
import contextlib
import io
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sandkeep
from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import Internal
from support.faults.clock import Point
from support.faults.stand import RUNTIMES, Stand
from support.faults.victims import OF_MACHINE, VICTIMS
from support.witness import machine_pids

ABSENT = "absent"
TEMPLATE_STEPS = ["echo built > /etc/built"]
GROWN = {"memory": "320MiB", "disk": "320MiB", "labels": {"grown": "yes"}}
FACT = "echo told > /home/user/told; sync"
IN_COMMAND, LASTS = "exec/amid", 0.08
"""The point of a command, which no step tells, and about how many seconds it takes."""


@dataclass(frozen=True)
class Scenario:
    """before, after: `phase` or `paused-<hold>`. kept_before, kept_after: whether the memory of the sandbox as it was
    prepared is there in that state. act: by a client that may or may not try again. halfway: where it may be left, and said to
    be, when it was not acknowledged."""

    name: str
    act: Callable[[Client, Sandbox], None]
    before: str
    after: str
    prepare: Callable[[Sandbox], None] = lambda _: None
    kept_before: bool = True
    kept_after: bool = True
    runtimes: tuple[str, ...] = RUNTIMES
    persistence: str | None = None
    commit: str | None = None
    of_template: bool = False
    halfway: str = ""


def pause(hold: str) -> Callable[[Sandbox], None]:
    return lambda sandbox: sandbox.pause(hold=hold)  # type: ignore[arg-type]


def rescued(sandbox: Sandbox) -> None:
    sandbox.stop()
    sandbox.start(rescue=True)


def by(verb: str, **options: object) -> Callable[[Client, Sandbox], None]:
    """The call through this client, whatever the object came from."""

    def act(client: Client, sandbox: Sandbox) -> None:
        getattr(Sandbox(client, sandbox._answer), verb)(**options)

    return act


def command(client: Client, sandbox: Sandbox) -> None:
    assert Sandbox(client, sandbox._answer).exec(FACT).exit_code == 0


def hold_deleted_file(sandbox: Sandbox) -> None:
    """What gVisor cannot save."""
    held = "exec 3>/home/user/gone; rm /home/user/gone; touch /tmp/held; exec sleep 100000"
    sandbox.start_process(["sh", "-c", held]).detach()
    assert sandbox.exec("while ! [ -e /tmp/held ]; do sleep 0.02; done", timeout=20).exit_code == 0


def build(client: Client, sandbox: Sandbox) -> None:
    client.templates.build("tortured", TEMPLATE_STEPS, parent="test", runtime=sandbox.runtime, memory="128MiB")
    while (view := client.templates.get("tortured")).phase == "building":
        time.sleep(0.05)
    if view.phase != "ready":
        raise Internal(f"the build is {view.phase}: {view.reason}")


def delete_template(client: Client, _: Sandbox) -> None:
    client.templates.delete("tortured")


def keep(sandbox: Sandbox) -> None:
    sandbox.snapshot("kept")


def keep_full(sandbox: Sandbox) -> None:
    sandbox.snapshot("kept", kind="full")


def delete_snapshot(client: Client, sandbox: Sandbox) -> None:
    Sandbox(client, sandbox._answer).snapshots.delete("kept")


def keep_its_end(sandbox: Sandbox) -> None:
    sandbox.timeline.set(on_exit=True)


def keep_its_crash(sandbox: Sandbox) -> None:
    sandbox.timeline.set(on_crash=True)
    sandbox.update(on_failure="stop")


def end_machine(client: Client, sandbox: Sandbox) -> None:
    for pid in machine_pids(sandbox):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    Sandbox(client, sandbox._answer).wait("stopped")


def archived(sandbox: Sandbox) -> None:
    sandbox.stop()
    sandbox.archive()


def archived_paused(sandbox: Sandbox) -> None:
    sandbox.pause()
    sandbox.archive()


CARRIED: dict[str, tuple[bytes, str]] = {}


def export(client: Client, sandbox: Sandbox) -> None:
    Sandbox(client, sandbox._answer).export(io.BytesIO())


def carried(ready: Callable[[Sandbox], object]) -> Callable[[Sandbox], None]:
    def prepare(sandbox: Sandbox) -> None:
        ready(sandbox)
        file = io.BytesIO()
        key = sandbox.export(file)
        CARRIED.clear()
        CARRIED[sandbox.id] = file.getvalue(), key

    return prepare


def bring(client: Client, sandbox: Sandbox) -> None:
    data, key = CARRIED[sandbox.id]
    Sandbox.from_file(io.BytesIO(data), key, name="brought", client=client)


def move_snapshot(verb: str) -> Callable[[Client, Sandbox], None]:
    """To the store, or back."""
    return lambda client, sandbox: getattr(Sandbox(client, sandbox._answer).snapshots, verb)("kept")


def keep_archived(sandbox: Sandbox) -> None:
    keep(sandbox)
    sandbox.snapshots.archive("kept")


def keep_archived_full(sandbox: Sandbox) -> None:
    keep_full(sandbox)
    sandbox.snapshots.archive("kept")


def set_timeline(client: Client, sandbox: Sandbox) -> None:
    Sandbox(client, sandbox._answer).timeline.set(every="1h", keep_last=3)


def commit(sandbox: Sandbox) -> None:
    sandbox.commit("point")


def commit_and_stop(sandbox: Sandbox) -> None:
    commit(sandbox)
    sandbox.stop()


def begin_again(sandbox: Sandbox) -> None:
    sandbox.stop()
    sandbox.start()


def fork(kind: str) -> Callable[[Sandbox], None]:
    def prepare(sandbox: Sandbox) -> None:
        sandbox.fork(name="forked", kind=kind)  # type: ignore[arg-type]

    return prepare


def promote(client: Client, sandbox: Sandbox) -> None:
    Sandbox.get("forked", client=client).promote(sandbox.id)


def nothing(_client: Client, _sandbox: Sandbox) -> None:
    raise AssertionError("a creation has no sandbox to act on")


GVISOR = ("gvisor",)
SCENARIOS = (
    Scenario("create", nothing, ABSENT, "running", kept_after=False),
    Scenario("start", by("start"), "stopped", "running", Sandbox.stop, kept_before=False, kept_after=False),
    Scenario("start-paused", by("start"), "paused-disk", "running", pause("disk"), kept_after=False, runtimes=GVISOR),
    Scenario(
        "start-rescue", by("start", rescue=True), "stopped", "running", Sandbox.stop, kept_before=False, kept_after=False
    ),
    Scenario("leave-rescue", by("start"), "running", "running", rescued, kept_before=False, kept_after=False),
    Scenario("exec", command, "running", "running"),
    Scenario("exec-wakes", command, "stopped", "running", Sandbox.stop, kept_before=False, kept_after=False),
    Scenario("pause-memory", by("pause", hold="memory"), "running", "paused-memory"),
    Scenario("pause-disk", by("pause", hold="disk"), "running", "paused-disk", runtimes=GVISOR),
    Scenario("pause-held", by("pause", hold="disk"), "paused-memory", "paused-disk", pause("memory"), runtimes=GVISOR),
    Scenario(
        "pause-or-stop", by("pause", hold="disk", or_disk=True), "running", "stopped", hold_deleted_file,
        kept_after=False, runtimes=GVISOR,
    ),
    Scenario("resume-memory", by("resume"), "paused-memory", "running", pause("memory")),
    Scenario("resume-disk", by("resume"), "paused-disk", "running", pause("disk"), runtimes=GVISOR),
    Scenario("stop", by("stop"), "running", "stopped", kept_after=False),
    Scenario("stop-keeps", by("stop"), "running", "stopped", keep_its_end, kept_after=False),
    Scenario("stop-held", by("stop"), "paused-memory", "stopped", pause("memory"), kept_after=False),
    Scenario("stop-paused", by("stop"), "paused-disk", "stopped", pause("disk"), kept_after=False, runtimes=GVISOR),
    Scenario("stop-ephemeral", by("stop"), "running", ABSENT, persistence="ephemeral"),
    Scenario("update", by("update", **GROWN), "running", "running"),
    Scenario(
        "crash-keeps", end_machine, "running", "stopped", keep_its_crash, kept_before=False, kept_after=False,
    ),
    Scenario("timeline", set_timeline, "running", "running"),
    Scenario("archive", by("archive"), "stopped", "archived", Sandbox.stop, kept_before=False, kept_after=False),
    Scenario("archive-paused", by("archive"), "paused-disk", "archived", pause("disk"), runtimes=GVISOR),
    Scenario("wake", by("wake"), "archived", "stopped", archived, kept_before=False, kept_after=False),
    Scenario("wake-paused", by("wake"), "archived", "paused-disk", archived_paused, runtimes=GVISOR),
    Scenario("delete-archived", by("delete"), "archived", ABSENT, archived),
    Scenario("export", export, "stopped", "stopped", Sandbox.stop, kept_before=False, kept_after=False),
    Scenario("export-paused", export, "paused-disk", "paused-disk", pause("disk"), runtimes=GVISOR),
    Scenario(
        "import", bring, "stopped", "stopped", carried(Sandbox.stop), kept_before=False, kept_after=False,
    ),
    Scenario("import-paused", bring, "paused-disk", "paused-disk", carried(pause("disk")), runtimes=GVISOR),
    Scenario("delete", by("delete"), "running", ABSENT),
    Scenario("delete-paused", by("delete"), "paused-disk", ABSENT, pause("disk"), runtimes=GVISOR),
    Scenario("snapshot", by("snapshot", name="kept"), "running", "running"),
    Scenario("snapshot-full", by("snapshot", name="kept", kind="full"), "running", "running", runtimes=GVISOR),
    Scenario(
        "snapshot-held", by("snapshot", name="kept", kind="full"), "paused-memory", "paused-memory", pause("memory"),
        runtimes=GVISOR,
    ),
    Scenario("create-session", nothing, ABSENT, "running", kept_after=False, persistence="snapshot"),
    Scenario(
        "session-start", by("start"), "stopped", "running", commit_and_stop, kept_before=False, kept_after=False,
        persistence="snapshot", commit="manual",
    ),
    Scenario(
        "session-stop", by("stop"), "running", "stopped", commit, kept_after=False, persistence="snapshot", commit="manual",
    ),
    Scenario(
        "session-commits", by("stop"), "running", "stopped", begin_again, kept_before=False, kept_after=False,
        persistence="snapshot", commit="on-stop",
    ),
    Scenario("diff-now", by("diff", before="kept"), "running", "running", keep),
    Scenario(
        "promote", promote, "running", "running", fork("disk"), kept_before=False, kept_after=False, halfway="stopped",
        runtimes=("runc",),
    ),
    Scenario(
        "promote-full", promote, "running", "running", fork("full"), halfway="paused-disk", runtimes=GVISOR,
    ),
    Scenario("snapshot-delete", delete_snapshot, "running", "running", keep),
    Scenario("archive-snapshot", move_snapshot("archive"), "running", "running", keep),
    Scenario("archive-snapshot-full", move_snapshot("archive"), "running", "running", keep_full, runtimes=GVISOR),
    Scenario("wake-snapshot", move_snapshot("wake"), "running", "running", keep_archived),
    Scenario("wake-snapshot-full", move_snapshot("wake"), "running", "running", keep_archived_full, runtimes=GVISOR),
    Scenario("snapshot-delete-archived", delete_snapshot, "running", "running", keep_archived),
    Scenario(
        "rollback", by("rollback", snapshot="kept"), "running", "running", keep, kept_before=False, kept_after=False,
        halfway="stopped",
    ),
    Scenario(
        "rollback-full", by("rollback", snapshot="kept"), "running", "running", keep_full, halfway="paused-disk",
        runtimes=GVISOR,
    ),
    Scenario(
        "fork-full", by("fork", snapshot="kept", name="forked"), "running", "running", keep_full, runtimes=GVISOR,
    ),
    Scenario("fork", by("fork", snapshot="kept", name="forked"), "running", "running", keep),
    Scenario("template", build, ABSENT, "ready", of_template=True),
    Scenario(
        "template-delete", delete_template, "ready", ABSENT, lambda s: build(s.client, s), runtimes=("runc",),
        of_template=True,
    ),
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Cell:
    """One place of the matrix. `nth`: of the points of this name in the operation."""

    runtime: str
    scenario: str
    point: str
    nth: int
    victim: str

    @property
    def key(self) -> str:
        again = f"#{self.nth}" if self.nth > 1 else ""
        return f"{self.runtime}/{self.scenario}/{self.point}{again}/{self.victim}"


class CellAim:
    """The death that a cell is; `lasts`: seconds, of which a death amid a step takes a part."""

    def __init__(self, cell: Cell, delay: float) -> None:
        self.victim = cell.victim
        self.in_command = cell.point == IN_COMMAND
        amid = cell.point.endswith("/amid")
        self.delay = delay if amid else 0.0
        self._name = cell.point.removesuffix("amid") + "at" if amid else cell.point
        self._left = cell.nth

    def takes(self, point: Point) -> bool:
        here = point.name == self._name
        self._left -= here
        return here and self._left == 0


@dataclass(frozen=True)
class Seen:
    """A point of a clean run. `machine`: whether the sandbox had one then; `lasts`: seconds until the next point."""

    point: Point
    machine: bool
    lasts: float


class Recorder:
    """Notes the points of a clean run as the clock tells them."""

    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self._seen: list[tuple[Point, bool, float]] = []
        self._lock = threading.Lock()

    def __call__(self, point: Point) -> None:
        machine = point.subject.startswith("sbx_") and bool(self._stand.machines.pids(point.subject))
        with self._lock:
            self._seen.append((point, machine, time.monotonic()))

    def points(self) -> list[Seen]:
        """The last one is the end of the operation and lasts no time."""
        ends = [at for _, _, at in self._seen[1:]] + [at for _, _, at in self._seen[-1:]]
        return [Seen(point, machine, end - at) for (point, machine, at), end in zip(self._seen, ends, strict=True)]


def cells(runtime: str, scenario: Scenario, seen: list[Seen]) -> dict[Cell, float]:
    """All that can be tried here -> seconds that the step lasts."""
    found: dict[Cell, float] = {}
    counts: Counter[str] = Counter()
    for one in seen:
        moments = {one.point.name: one.machine}
        if one.point.moment == "at" and one.point.step not in ("begin", "close"):
            moments[f"{one.point.verb}.{one.point.step}/amid"] = True
        for name, machine in moments.items():
            counts[name] += 1
            for victim in VICTIMS:
                if not has(runtime, victim) or (victim in OF_MACHINE and not machine):
                    continue
                found[Cell(runtime, scenario.name, name, counts[name], victim)] = one.lasts
    if scenario.name == "exec":  # is not journalled: the clock is the command itself
        for victim in VICTIMS:
            if has(runtime, victim):
                found[Cell(runtime, scenario.name, IN_COMMAND, 1, victim)] = LASTS
    return found


def has(runtime: str, victim: str) -> bool:
    return victim != "gofer" or runtime == "gvisor"


def journalled_lines() -> set[str]:
    """`file:line` of every call in the engine that journals a step or an intent: from the code, so that a new one counts."""
    found = set()
    for path in (Path(sandkeep.__file__).parent / "engine").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            of = ast.unparse(node.func.value)
            if (node.func.attr == "step" and of.endswith("entry")) or (node.func.attr == "begin" and "journal" in of):
                found.add(f"{path.name}:{node.lineno}")
    return found
