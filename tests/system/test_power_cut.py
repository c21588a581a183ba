"""The power goes at a random moment of everything that a sandbox can be told to do: what was acknowledged is there after it."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import NotFound
from support.instance import client_of, until
from support.power import Host
from support.witness import settled_fsck

pytestmark = pytest.mark.requires("btrfs", "gvisor", "runc")

MARK = "echo {n} > /dev/shm/mark; echo {n} > fresh && sync fresh && mv fresh count && sync ."
"""Memory and disk know the number; the disk durably."""


@dataclass(frozen=True)
class State:
    """What somebody was told. phase: running, paused-disk, paused-memory, stopped, gone."""

    phase: str
    count: int = 0
    labels: str = ""


@dataclass(eq=False)
class Actor(threading.Thread):
    """One client with one sandbox after another, doing what its `plan` says, until told to stop. `told`: every state that
    was asked for and then acknowledged, in order: a cut may find the last acknowledged one, or what was begun after it."""

    client: Client
    options: dict[str, str]
    plan: tuple[str, ...]
    name_: str
    stopping: threading.Event = field(default_factory=threading.Event)
    told: list[tuple[str, State, bool]] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def run(self) -> None:
        try:
            for number in range(1000):
                self._live(f"{self.name_}-{number}")
                if self.stopping.is_set():
                    return
        except BaseException as error:  # told to the test
            self.failed.append(error)

    def _live(self, name: str) -> None:
        state = State("gone")
        self.told.append((name, state, True))
        sandbox: Sandbox | None = None

        def step(after: State, act: Callable[[], object]) -> State:
            self.told.append((name, after, False))
            act()
            self.told.append((name, after, True))
            return after

        def create() -> None:
            nonlocal sandbox
            sandbox = Sandbox.create(
                name, template="test", memory="128MiB", disk="900MiB", client=self.client, **self.options
            )  # type: ignore[arg-type]

        state = step(State("running"), create)
        assert sandbox is not None
        box: Sandbox = sandbox
        for number, verb in enumerate(self.plan, 1):
            if self.stopping.is_set():
                return
            if verb == "exec":
                state = step(replace(state, count=number), lambda n=number: _exec(box, MARK.format(n=n)))  # type: ignore[misc]
            elif verb == "pause":
                state = step(replace(state, phase="paused-disk"), box.pause)
            elif verb == "freeze":
                state = step(replace(state, phase="paused-memory"), lambda: box.pause(hold="memory"))
            elif verb == "resume":
                state = step(replace(state, phase="running"), box.resume)
            elif verb == "stop":
                state = step(replace(state, phase="stopped"), box.stop)
            elif verb == "start":
                state = step(replace(state, phase="running"), box.start)
            elif verb == "update":
                label = str(number)
                state = step(
                    replace(state, labels=label),
                    lambda label=label: box.update(labels={"n": label}, disk=(1000 + int(label)) << 20),  # type: ignore[misc]
                )
        step(State("gone"), box.delete)

    def moment(self) -> int:
        """Index of the last acknowledgement."""
        return max((i for i, (_, _, acknowledged) in enumerate(self.told) if acknowledged), default=0)


def _exec(box: Sandbox, line: str) -> None:
    done = box.exec(line)
    assert done.exit_code == 0, done.stderr


@dataclass(frozen=True)
class Cut:
    image: object
    allowed: dict[str, list[State]]


def take(host: Host, actors: list[Actor]) -> Cut:
    """An instant, and for each sandbox what may be found of it."""
    before = [actor.moment() for actor in actors]
    image = host.cut()
    allowed: dict[str, list[State]] = {}
    for actor, first in zip(actors, before, strict=True):
        told = list(actor.told)
        for name, state, _ in told[: first + 1]:
            allowed[name] = [state]  # the last acknowledged one
        for name, state, _ in told[first + 1 :]:
            allowed.setdefault(name, [State("gone")]).append(state)
    return Cut(image, allowed)


def check(client: Client, name: str, allowed: list[State], ephemeral: bool) -> None:
    try:
        sandbox = Sandbox.get(name, client=client)
    except NotFound:
        assert ephemeral or State("gone") in allowed, f"{name} is lost; it was {allowed}"
        return
    assert not ephemeral, f"{name} is ephemeral and came back as {sandbox.phase}"
    states = [state for state in allowed if state.phase != "gone"]
    assert states, f"{name} was deleted and came back as {sandbox.phase}"
    found = "paused-disk" if (sandbox.phase, sandbox.hold) == ("paused", "disk") else sandbox.phase
    may = {state.phase for state in states}
    lives = {"running", "paused-memory"} & may
    fits = found in may or (lives and found in ("stopped", "starting", "running"))
    assert fits, f"{name} is {found}: {sandbox.reason}; it was {allowed}"
    lived = [(event.kind, event.reason) for event in sandbox.events()]
    assert sandbox.labels.get("n", "") in {state.labels for state in states}, lived
    if found != "paused-disk" and found not in may:
        kinds = [event.kind for event in sandbox.events()]
        assert {"sandbox.exited", "sandbox.memory_lost"} & set(kinds), kinds
        assert "MemoryLost" in {one.kind for one in sandbox.conditions if one.value}
    counts = [state.count for state in states]
    held = sandbox.exec("cat count 2>/dev/null || echo 0; cat /dev/shm/mark 2>/dev/null || echo none")
    count, mark = held.stdout.split()
    assert min(counts) <= int(count) <= max(counts), f"{name} has {count} of {counts}"
    if found == "paused-disk":
        assert mark == count, f"{name} was resumed without its memory: {mark} instead of {count}"
    assert sandbox.exec("echo works > after && cat after").stdout == "works\n"


def power_cuts(host: Host, cuts: int, seconds: float, seed: int) -> None:
    random.seed(seed)
    print(f"seed {seed}")  # shown when it fails
    instance = host.instance
    client = client_of(instance)
    plans: list[tuple[dict[str, str], tuple[str, ...]]] = [
        (
            {"persistence": "full"},
            ("exec", "pause", "resume", "exec", "update", "pause", "resume", "exec", "stop", "start", "exec", "pause"),
        ),
        ({"runtime": "runc"}, ("exec", "freeze", "resume", "update", "exec", "stop", "start", "exec")),
        ({"runtime": "runc", "persistence": "ephemeral"}, ("exec", "exec")),
        ({"persistence": "full"}, ("exec", "pause")),
    ]
    actors = [Actor(client, options, plan, f"power-{n}") for n, (options, plan) in enumerate(plans)]
    for actor in actors:
        actor.start()
    taken: list[Cut] = []
    try:
        for _ in range(cuts):
            pause_until = time.monotonic() + random.uniform(0.5, 1.0) * seconds / cuts
            until(lambda end=pause_until: time.monotonic() >= end, seconds + 5, wait=0.005)  # type: ignore[misc]
            taken.append(take(host, actors))
    finally:
        for actor in actors:
            actor.stopping.set()
        for actor in actors:
            actor.join(120)
    assert [actor.failed for actor in actors if actor.failed] == []
    client.close()
    ephemeral = {actor.name_ for actor in actors if actor.options.get("persistence") == "ephemeral"}
    for cut in taken:
        host.lose()
        host.boot(cut.image)  # type: ignore[arg-type]
        with client_of(instance) as client:
            settled_fsck(instance)
            for name, allowed in cut.allowed.items():
                check(client, name, allowed, name.rpartition("-")[0] in ephemeral)
            settled_fsck(instance)
            for sandbox in list(Sandbox.list(client=client)):
                sandbox.delete()
            until(lambda: not list((instance.root / "data/pool/sandboxes").iterdir()))
            assert instance.fsck() == []


def test_what_was_acknowledged_survives_a_power_cut(host: Host) -> None:
    power_cuts(host, cuts=1, seconds=4, seed=random.randrange(1 << 30))


@pytest.mark.long
@pytest.mark.parametrize("batch", range(4))
def test_forty_power_cuts(host: Host, batch: int) -> None:
    power_cuts(host, cuts=10, seconds=30, seed=random.randrange(1 << 30))
