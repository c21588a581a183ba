"""One trial: an operation, a death in the middle of it, and whether all that was promised is true afterwards."""

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

from sandkeep.sdk import Sandbox
from sandkeep.sdk.errors import NotFound, SandkeepError
from support.census import disk_limits
from support.faults.clock import Act, Point
from support.faults.stand import SMALL, Stand
from support.faults.victims import DAEMONS, OF_MACHINE, kill_and_wait, resolver_pid
from support.instance import until
from torture.matrix import ABSENT, GROWN, Recorder, Scenario, Seen

KINDS = ("lost", "stuck", "leaked", "inconsistent")
_SETTLED = ("running", "paused", "stopped", "archived", "failed")
_ANSWER, _SETTLE, _CLEAR = 100.0, 40.0, 20.0
"""Seconds for the answer, for a settled phase afterwards, and for fsck to find nothing."""


class Failed(Exception):
    """kind: one of KINDS."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(f"{kind}: {why}")
        self.kind, self.why = kind, why


class Aim(Protocol):
    """Who dies, so many seconds after the first point that it takes. `in_command`: no point but the command itself."""

    victim: str
    delay: float
    in_command: bool

    def takes(self, point: Point) -> bool: ...


@dataclass
class Outcome:
    """out: ok, void (no point was taken, or the victim was not there), or one of KINDS."""

    out: str
    answer: str = ""
    state: str = ""
    why: str = ""
    seconds: float = 0.0


@dataclass
class Operation:
    """A scenario's sandbox, prepared, and the request that is under way in a thread of its own."""

    stand: Stand
    runtime: str
    scenario: Scenario
    patient: bool = True
    sandbox: Sandbox | None = None
    note: str = ""
    witness: int = 0
    answer: SandkeepError | BaseException | None = None
    made: str | None = None
    _thread: threading.Thread | None = field(default=None, repr=False)

    def prepare(self) -> None:
        self.note = f"note-{time.monotonic_ns()}"
        if self._creates:
            return
        self.sandbox = self.stand.create(self.runtime, **self._options)
        if not self.scenario.of_template:
            assert self.sandbox.exec(f"echo {self.note} > /home/user/note; sync").exit_code == 0
            process = self.sandbox.start_process(["sleep", "100000"])
            process.detach()
            self.witness = process.pid or 0
        self.scenario.prepare(self.sandbox)
        self.sandbox.refresh()

    @property
    def _creates(self) -> bool:
        return self.scenario.name.startswith("create")

    @property
    def _options(self) -> dict[str, str]:
        asked = {"template": SMALL, "persistence": self.scenario.persistence, "commit": self.scenario.commit}
        return {name: value for name, value in asked.items() if value}

    def begin(self) -> None:
        self._thread = threading.Thread(target=self._request, daemon=True)
        self._thread.start()

    def _request(self) -> None:
        client = self.stand.client if self.patient else self.stand.hasty
        try:
            if self.sandbox is None:
                self.made = self.stand.create(self.runtime, client=client, name="tortured", **self._options).id
            else:
                self.scenario.act(client, self.sandbox)
        except BaseException as error:
            self.answer = error

    @property
    def ended(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()

    def join(self) -> None:
        assert self._thread
        self._thread.join(_ANSWER)
        if self._thread.is_alive():
            raise Failed("stuck", "the request never came back")

    @property
    def acknowledged(self) -> bool:
        return self.answer is None

    def said(self) -> str:
        return "ack" if self.answer is None else getattr(self.answer, "code", type(self.answer).__name__)

    # -- what became of it

    def state(self) -> str:
        """Settled: a phase, `paused-<hold>`, or absent."""
        if self.scenario.of_template:
            return self._template_state()
        try:
            found = Sandbox.get(self.sandbox.id if self.sandbox else "tortured", client=self.stand.client)
            self.sandbox = found
            found.wait(*_SETTLED, timeout=_SETTLE)
        except NotFound:
            return ABSENT
        except SandkeepError as error:
            raise Failed("stuck", f"it does not settle: {self.sandbox and self.sandbox.phase}: {error}") from error
        return f"{found.phase}-{found.hold}" if found.phase == "paused" else found.phase

    def _template_state(self) -> str:
        def settled() -> str | None:
            try:
                view = self.stand.client.templates.get("tortured")
            except NotFound:
                return ABSENT
            return view.phase if view.phase in ("ready", "failed") else None

        try:
            return str(until(settled, _SETTLE, wait=0.05))
        except AssertionError:
            raise Failed("stuck", "the template does not settle") from None

    def check(self, state: str, machine_died: bool) -> None:
        """The state against what was acknowledged, then what is in it: its disk, and its memory if it was kept."""
        one = self.scenario
        allowed = {one.after} if self.acknowledged else {one.before, one.after}
        if one.halfway and not self.acknowledged:
            allowed |= {one.halfway}
        if one.of_template:
            allowed |= set() if self.acknowledged else {"failed"}
            if state not in allowed:
                raise Failed("lost", f"{self.said()}, and the template is {state}")
            return
        if machine_died and allowed & {"running", "paused-memory"}:
            allowed |= {"running", ABSENT if one.persistence == "ephemeral" else "stopped"}
            allowed |= {one.halfway} if one.halfway else set()  # what had died before did not run
        if state not in allowed:
            raise Failed("lost", f"{self.said()}, and it is {state}: {self.sandbox and self.sandbox.reason}")
        if state == ABSENT or self.sandbox is None:
            return
        kept = (state == one.before and one.kept_before) or (state == one.after and one.kept_after)
        if state in ("running", "paused-memory") and machine_died:
            kept = False
        if machine_died and state == "paused-memory":
            self._thaw_the_dead()
        self._look_inside(kept)
        if one.name == "update":
            self._limits_agree()

    def _thaw_the_dead(self) -> None:
        """Version 1's freezer keeps what was killed in it until it is thawed: only then is the machine seen to be gone."""
        assert self.sandbox
        with contextlib.suppress(SandkeepError):
            self.sandbox.exec("true", timeout=30)
        self.state()

    def _look_inside(self, kept: bool) -> None:
        assert self.sandbox
        try:
            found = self.sandbox.exec("cat /home/user/note /home/user/told 2>/dev/null; true", timeout=60).stdout
            pids = [process.pid for process in self.sandbox.processes()] if kept else []
        except SandkeepError as error:
            raise Failed("lost", f"it cannot be entered: {error.code}: {error}") from error
        lines = found.split()
        if not self._creates and self.note not in lines:
            raise Failed("lost", f"its disk says {found!r}")
        if self.scenario.name.startswith("exec") and self.acknowledged and "told" not in lines:
            raise Failed("lost", "a command was acknowledged, and what it wrote is gone")
        if kept and self.witness not in pids:
            raise Failed("lost", "its processes did not go on")

    def _limits_agree(self) -> None:
        """Server, node and pool say the same, all of the update or nothing of it."""
        assert self.sandbox
        said: list[tuple[object, ...]] = []

        def agree() -> bool:
            assert self.sandbox
            self.sandbox.refresh()
            spec = self.stand.records().sandboxes[self.sandbox.id].spec
            server = (self.sandbox.memory, self.sandbox.disk, dict(self.sandbox.labels))
            node = (spec.limits.memory, spec.limits.disk, spec.labels)
            said[:] = [server, node, tuple(disk_limits(self.stand.instance))]
            grown = server == (320 << 20, 320 << 20, GROWN["labels"])
            plain = server == (256 << 20, 256 << 20, {})
            return server == node and (grown or plain) and ((320 << 20) in said[2]) == grown

        try:
            until(agree, _CLEAR, wait=0.1)
        except AssertionError:
            raise Failed("inconsistent", f"half an update: server, node and pool say {said}") from None
        if self.acknowledged and not self.sandbox.labels:
            raise Failed("lost", "an update was acknowledged")

    def clean(self) -> None:
        """Delete all that it made; whatever phase it is in."""
        client = self.stand.client
        try:
            if self.scenario.of_template:
                try:
                    client.templates.delete("tortured")
                except NotFound:
                    pass
            keep = {bystander.sandbox.id for bystander in self.stand.bystanders}
            self.stand.instance.clean(client, keep)
        except SandkeepError as error:
            raise Failed("stuck", f"it cannot be deleted: {error.code}: {error}") from error


def record(stand: Stand, runtime: str, scenario: Scenario) -> list[Seen]:
    """The points of a clean run."""
    operation, recorder = Operation(stand, runtime, scenario), Recorder(stand)
    operation.prepare()
    stand.clock.watch(recorder)
    operation.begin()
    operation.join()
    stand.clock.disarm()
    if operation.answer:
        raise AssertionError(f"{runtime} {scenario.name} failed without any fault") from operation.answer
    state = operation.state()
    assert state == scenario.after, f"{runtime} {scenario.name} ends {state} without any fault"
    operation.check(state, machine_died=False)
    operation.clean()
    left = stand.left_behind()
    assert left is None, f"{runtime} {scenario.name} without any fault: {left}"
    return recorder.points()


def run(
    stand: Stand, runtime: str, scenario: Scenario, aim: Aim, *, patient: bool, thorough: bool, counted: bool = True
) -> Outcome:
    """patient: by a client that tries again. thorough: the bystanders are asked how long they stood still. counted: what is
    on the host is counted, which waits for what is erased in the background."""
    begun = time.monotonic()
    operation = Operation(stand, runtime, scenario, patient)
    outcome = Outcome("ok")
    try:
        operation.prepare()
        hit = _disturb(stand, aim, operation)
        outcome.answer = operation.said()
        if hit:
            operation.state()
            _clear(stand)
            outcome.state = operation.state()  # what a machine's death changes comes a moment later
            operation.check(outcome.state, machine_died=aim.victim in OF_MACHINE)
        else:
            outcome.out = "void"
        noticed = stand.unnoticed(thorough=thorough)
        if noticed:
            raise Failed("inconsistent", noticed)
        operation.clean()
        left = stand.left_behind() if counted else None
        if left:
            raise Failed("leaked", left)
    except Failed as error:
        outcome.out, outcome.why, outcome.answer = error.kind, error.why, operation.said()
    except (SandkeepError, AssertionError) as error:
        outcome.out, outcome.why = "stuck", f"{type(error).__name__}: {error}"
    outcome.seconds = round(time.monotonic() - begun, 2)
    return outcome


def _disturb(stand: Stand, aim: Aim, operation: Operation) -> bool:
    """True when the victim died. The platform serves again, and the request has ended, when it returns."""
    done = threading.Event()
    hit: list[bool] = []

    def kill(point: Point | None) -> None:
        try:
            if aim.victim in DAEMONS:
                killed = [kill_and_wait(stand.pid(name)) for name in DAEMONS[aim.victim]]
                hit.append(all(killed))
            elif aim.victim == "resolver":
                hit.append(kill_and_wait(resolver_pid(stand.instance)))
            else:
                subject = operation.sandbox.id if operation.sandbox else ""
                if point and point.subject.startswith("sbx_"):
                    subject = point.subject
                hit.append(bool(subject) and stand.machines.kill(aim.victim, subject))
        finally:
            done.set()

    if aim.in_command:
        operation.begin()
        time.sleep(aim.delay)
        kill(None)
    else:
        stand.clock.arm(aim.takes, lambda point: _later(aim.delay, kill, point) if aim.delay else kill(point))
        operation.begin()
        while not done.wait(0.01):
            if operation.ended and stand.clock.disarm():
                return False
    stand.revive()
    operation.join()
    stand.clock.disarm()
    return bool(hit) and hit[0]


def _later(delay: float, kill: Act, point: Point) -> None:
    threading.Timer(delay, kill, (point,)).start()


def _clear(stand: Stand) -> None:
    findings: list[dict[str, str]] = []
    end = time.monotonic() + _CLEAR
    while time.monotonic() < end:
        findings = stand.fsck()
        if not findings:
            return
        time.sleep(0.05)
    kind = "leaked" if any("unowned" in f["kind"] or "stranger" in f["kind"] for f in findings) else "inconsistent"
    raise Failed(kind, f"fsck: {findings[:3]}")
