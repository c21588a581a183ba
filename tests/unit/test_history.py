"""The oracle of the races: it must be able to say no."""

import pytest

from support.history import Call, explain


def call(verb: str, began: float, ended: float, status: int, phase: str = "", code: str = "") -> Call:
    return Call(verb, began, ended, status, phase, code)


def test_calls_at_once_may_take_effect_in_any_order() -> None:
    calls = [
        call("stop", 0, 5, 200, "stopped"),
        call("pause", 1, 4, 409, code="conflict"),
        call("start", 2, 6, 200, "running"),
        call("get", 7, 8, 200, "running"),
    ]
    found = explain(calls, "running")
    assert found is not None
    assert [one.verb for one in found] == ["stop", "pause", "start", "get"]


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([call("stop", 0, 1, 200, "stopped"), call("get", 2, 3, 200, "running")], id="a lost update"),
        pytest.param([call("delete", 0, 1, 204), call("get", 2, 3, 200, "running")], id="risen from the dead"),
        pytest.param([call("get", 0, 1, 404), call("delete", 2, 3, 204)], id="gone too early"),
        pytest.param([call("pause", 0, 1, 409, code="conflict")], id="refused for no reason"),
        pytest.param([call("stop", 0, 2, 200, "stopped"), call("start", 1, 3, 200, "paused")], id="a wrong phase"),
        pytest.param([call("start", 0, 1, 503, code="unavailable")], id="not carried out"),
    ],
)
def test_answers_that_no_order_explains(calls: list[Call]) -> None:
    assert explain(calls, "running") is None
