"""A state machine with a model as its oracle: random operations and kill -9 of daemons against the real engine.

The model knows of each sandbox in which phases it may be (more than one after an operation that a kill interrupted), what
was written into it and acknowledged, and whether it may be gone. Nothing else may be seen, ever.
"""

import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import Conflict, NotFound, SandkeepError
from support.instance import Instance
from support.witness import settled_fsck

SETTLED = ("running", "paused", "stopped", "failed")
REFUSED = {("start", "paused"), ("resume", "stopped"), ("pause", "stopped")}
AFTER = {"start": "running", "resume": "running", "pause": "paused", "stop": "stopped"}
VICTIMS = [("runner",), ("server",), ("runner", "server"), ()]


@dataclass
class Known:
    """What may be true of one sandbox."""

    phases: set[str]
    notes: set[str]


class Machine(RuleBasedStateMachine):
    """One run; `of` binds it to an instance and a runtime."""

    client: Client
    instance: Instance
    runtime: str
    boxes: Bundle[str] = Bundle("boxes")

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, Known] = {}
        self.hold = "disk" if self.runtime == "gvisor" else "memory"

    @rule(target=boxes)
    def create(self) -> object:
        if len(self.known) >= 4:
            return multiple()
        made = Sandbox.create(
            template="test",
            runtime=self.runtime,
            memory="256MiB",
            persistence="full" if self.runtime == "gvisor" else "volume",
            on_failure="stop",
            client=self.client,
        )
        self.known[made.id] = Known({"running"}, {""})
        return made.id

    def act(self, box: str, verb: str) -> None:
        """Raises SandkeepError; the model follows what was answered."""
        known = self.known[box]
        sandbox = Sandbox.get(box, client=self.client)
        try:
            sandbox.pause(hold=self.hold) if verb == "pause" else getattr(sandbox, verb)()  # type: ignore[arg-type]
        except Conflict:
            refused = {phase for phase in known.phases if (verb, phase) in REFUSED}
            assert refused, f"{verb} was refused, and it is {known.phases}"
            known.phases = refused
            return
        known.phases = {AFTER[verb]}
        assert sandbox.phase == AFTER[verb]

    @rule(box=boxes, verb=st.sampled_from(sorted(AFTER)))
    def change(self, box: str, verb: str) -> None:
        self.act(box, verb)

    @rule(box=boxes, text=st.integers(0, 999))
    def write(self, box: str, text: int) -> None:
        """It wakes what sleeps."""
        Sandbox.get(box, client=self.client).exec(f"echo -n {text} > note && sync")
        self.known[box] = Known({"running"}, {str(text)})

    @rule(box=boxes)
    def read(self, box: str) -> None:
        found = Sandbox.get(box, client=self.client).exec("cat note 2>/dev/null || true").stdout
        assert found in self.known[box].notes, f"{found!r} is not among {self.known[box].notes}"
        self.known[box] = Known({"running"}, {found})

    @rule(box=consumes(boxes))
    def delete(self, box: str) -> None:
        Sandbox.get(box, client=self.client).delete()
        del self.known[box]
        with pytest.raises(NotFound):
            Sandbox.get(box, client=self.client)

    @rule(victims=st.sampled_from(VICTIMS))
    def kill(self, victims: tuple[str, ...]) -> None:
        self.strike(victims)

    @rule(
        box=boxes,
        verb=st.sampled_from(sorted(AFTER)),
        victims=st.sampled_from(VICTIMS[:3]),
        delay=st.floats(0, 0.3),
    )
    def kill_in_the_middle(self, box: str, verb: str, victims: tuple[str, ...], delay: float) -> None:
        known = self.known[box]
        before = set(known.phases)
        answered: list[str] = []

        def request() -> None:
            with suppress(SandkeepError):
                self.act(box, verb)
                answered.append(verb)

        thread = threading.Thread(target=request)
        thread.start()
        thread.join(delay)
        self.strike(victims)
        thread.join(60)
        assert not thread.is_alive(), f"{verb} never came back"
        if not answered:
            known.phases = before | {AFTER[verb]}
            if verb in ("start", "resume", "pause"):
                known.phases.add("stopped")  # its machine may have been being made, and was undone

    def strike(self, victims: tuple[str, ...]) -> None:
        for victim in ("keeper", *victims):  # one that has seen many deaths waits before a start
            pid = self.instance.pid(victim)
            if pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.instance.ensure_up()

    @invariant()
    def all_are_as_the_model_says(self) -> None:
        seen = {sandbox.id: sandbox for sandbox in Sandbox.list(client=self.client)}
        assert set(seen) == set(self.known), "a sandbox was lost, or one is there that was deleted"
        for box, known in self.known.items():
            sandbox = seen[box]
            if sandbox.phase not in SETTLED or sandbox.phase not in known.phases:
                sandbox.wait(*known.phases, timeout=30)  # what a kill interrupted is being settled
            known.phases = {sandbox.phase}

    def teardown(self) -> None:
        for box in self.known:
            Sandbox.get(box, client=self.client).delete()
        settled_fsck(self.instance)


def check(client: Client, instance: Instance, runtime: str, *, examples: int, steps: int) -> None:
    bound = type("Bound", (Machine,), {"client": client, "instance": instance, "runtime": runtime})
    run_state_machine_as_test(
        bound,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # to shrink would take an hour: the report names every step
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def test_a_short_walk(client: Client, instance: Instance) -> None:
    check(client, instance, "runc", examples=1, steps=8)


@pytest.mark.long
@pytest.mark.parametrize("walk", range(10))
def test_long_walks(client: Client, instance: Instance, runtime: str, walk: int) -> None:
    check(client, instance, runtime, examples=1, steps=30)
