"""Why: what is said of a sandbox in every phase and under every condition."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sandkeep.domain.event import Event, EventKind
from sandkeep.domain.restart import OnFailure, Restarts
from sandkeep.domain.sandbox import (
    DEADLINES,
    TRANSITIONAL,
    Condition,
    ConditionKind,
    Hold,
    Lifetime,
    OnExpiry,
    Persistence,
    Phase,
    Sandbox,
    Spec,
    Status,
)
from sandkeep.domain.why import Explanation, Next, explain

NOW = 1_000_000.0


def sandbox(phase: Phase, *, reason: str = "asked for", hold: Hold | None = None, **fields: Any) -> Sandbox:
    spec = Spec("tpl_1", "base", persistence=Persistence.VOLUME, on_failure=OnFailure.RESTART)
    status = Status(phase, hold, reason, NOW)
    return Sandbox("sbx_1", "prj_1", "dev", spec, status, 1, NOW, NOW, **fields)


def commands(answer: Explanation) -> list[str]:
    return [remedy.command.removeprefix("sandkeep ") for remedy in answer.can]


def steps(answer: Explanation) -> list[tuple[str, float | None]]:
    return [(step.what, step.at) for step in answer.next]


@pytest.mark.parametrize(
    ("phase", "hold", "doing", "first"),
    [
        (Phase.NEW, None, "about to be made", "wait dev"),
        (Phase.STARTING, None, "a machine is being started", "wait dev"),
        (Phase.RUNNING, None, "it runs", "exec dev -- COMMAND"),
        (Phase.PAUSING, None, "being paused", "wait dev --phase paused"),
        (Phase.PAUSED, Hold.DISK, "on disk", "resume dev"),
        (Phase.PAUSED, Hold.MEMORY, "frozen", "resume dev"),
        (Phase.RESUMING, None, "being resumed", "wait dev"),
        (Phase.STOPPING, None, "being ended", "wait dev --phase stopped"),
        (Phase.STOPPED, None, "stopped; its disk is kept", "start dev"),
        (Phase.FAILED, None, "no call starts it", "start dev"),
        (Phase.DELETING, None, "being deleted", None),
        (Phase.DELETED, None, "nothing of it is left", None),
    ],
)
def test_every_phase(phase: Phase, hold: Hold | None, doing: str, first: str | None) -> None:
    answer = explain(sandbox(phase, hold=hold))
    assert doing in answer.doing
    assert (answer.since, answer.because) == (NOW, ("asked for",))
    assert commands(answer)[:1] == ([first] if first else [])
    assert ("delete dev" in commands(answer)) == (first is not None)
    ends = [at for _, at in steps(answer) if at is not None]
    assert ends == ([NOW + DEADLINES[phase]] if phase in TRANSITIONAL | {Phase.NEW} else [])


def test_no_phase_is_missing() -> None:
    for phase in Phase:
        assert explain(sandbox(phase)).doing


@pytest.mark.parametrize(
    ("kind", "value", "command"),
    [
        (ConditionKind.OUT_OF_MEMORY, True, "update dev --memory SIZE"),
        (ConditionKind.MEMORY_SAVABLE, False, "pause dev --or-disk"),
        (ConditionKind.CRASH_LOOP, True, "events dev"),
        (ConditionKind.MEMORY_LOST, True, None),
        (ConditionKind.CONNECTIONS_RESET, True, None),
    ],
)
def test_a_condition_that_is_trouble_is_a_reason(kind: ConditionKind, value: bool, command: str | None) -> None:
    plain = sandbox(Phase.RUNNING)
    for told, holds in ((True, value), (False, not value)):
        status = plain.status.with_condition(Condition(kind, holds, "so it is", NOW))
        answer = explain(replace(plain, status=status))
        assert (f"{kind}: so it is" in answer.because) == told
        if command:
            assert (command in commands(answer)) == told


@pytest.mark.parametrize("kind", [ConditionKind.DISK_READY, ConditionKind.GUEST_READY])
def test_what_the_phase_says_already_is_no_reason(kind: ConditionKind) -> None:
    plain = sandbox(Phase.RUNNING)
    status = plain.status.with_condition(Condition(kind, True, "so it is", NOW))
    assert explain(replace(plain, status=status)).because == ("asked for",)
    stopped = sandbox(Phase.STOPPED)
    status = stopped.status.with_condition(Condition(kind, False, "so it is", NOW))
    assert explain(replace(stopped, status=status)).because == ("asked for",)


def test_a_planned_restart() -> None:
    waiting = sandbox(Phase.STOPPED, reason="its machine ended: killed", restarts=Restarts(3, NOW + 4, 2))
    answer = explain(waiting)
    assert "waits to be started again" in answer.doing
    assert answer.next[0] == Next("it is started again (failures in a row: 3)", NOW + 4)
    assert commands(answer)[:3] == ["start dev", "stop dev", "update dev --on-failure stop"]


@pytest.mark.parametrize(
    ("rule", "persistence", "said"),
    [
        (OnFailure.RESTART, Persistence.VOLUME, "it is started again from its disk"),
        (OnFailure.STOP, Persistence.FULL, "it is stopped, and the next call starts it"),
        (OnFailure.LEAVE, Persistence.VOLUME, "it is left as it is, until you start it"),
        (OnFailure.STOP, Persistence.EPHEMERAL, "it is deleted"),
    ],
)
def test_what_would_follow(rule: OnFailure, persistence: Persistence, said: str) -> None:
    one = sandbox(Phase.RUNNING)
    answer = explain(replace(one, spec=replace(one.spec, on_failure=rule, persistence=persistence)))
    assert steps(answer) == [(f"if its machine ends by itself, {said}", None)]
    assert ("stop dev" in commands(answer)) == (persistence is not Persistence.EPHEMERAL)
    assert ("pause dev" in commands(answer)) == (persistence is Persistence.FULL)


@pytest.mark.parametrize(
    ("persistence", "on_expiry", "phase", "said"),
    [
        (Persistence.VOLUME, OnExpiry.DEFAULT, Phase.RUNNING, "stopped"),
        (Persistence.FULL, OnExpiry.DEFAULT, Phase.RUNNING, "paused to disk"),
        (Persistence.EPHEMERAL, OnExpiry.DEFAULT, Phase.RUNNING, "deleted"),
        (Persistence.FULL, OnExpiry.DELETE, Phase.STOPPED, "deleted"),
        (Persistence.VOLUME, OnExpiry.DEFAULT, Phase.STOPPED, "left as it is"),
        (Persistence.VOLUME, OnExpiry.DEFAULT, Phase.DELETING, None),
    ],
)
def test_the_end_of_its_lifetime(persistence: Persistence, on_expiry: OnExpiry, phase: Phase, said: str | None) -> None:
    one = sandbox(phase, expires_at=NOW + 60)
    spec = replace(one.spec, persistence=persistence, lifetime=Lifetime(60.0, on_expiry))
    found = [step for step in steps(explain(replace(one, spec=spec))) if "lifetime" in step[0]]
    assert found == ([(f"its lifetime ends, and it is {said}", NOW + 60)] if said else [])


def events(*pairs: tuple[EventKind, str]) -> Sequence[Event]:
    return [Event(seq, "prj_1", NOW, kind, "sbx_1", reason) for seq, (kind, reason) in enumerate(pairs)]


def test_the_last_trouble_is_told_once() -> None:
    one = sandbox(Phase.RUNNING, reason="started from its disk")
    happened = events(
        (EventKind.SANDBOX_FAILED, "old"),
        (EventKind.SANDBOX_EXITED, "its machine ended: killed"),
        (EventKind.SANDBOX_STARTED, "started"),
    )
    assert explain(one, happened).because == ("started from its disk", "before that: its machine ended: killed")
    stopped = sandbox(Phase.STOPPED, reason="its machine ended: killed; the disk was kept")
    assert explain(stopped, happened).because == ("its machine ended: killed; the disk was kept",)
