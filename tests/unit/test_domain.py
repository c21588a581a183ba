"""The words of the trade: names, ids, sizes, phases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.domain.errors import InvalidArgument, every_error
from sandkeep.domain.ids import IdKind, body, is_id, new_id
from sandkeep.domain.names import check_env, check_labels, check_name
from sandkeep.domain.quantities import GIB, MIB, format_size, parse_duration, parse_size
from sandkeep.domain.sandbox import DEADLINES, TRANSITIONAL, TRANSITIONS, Limits, Phase, may_follow
from sandkeep.edge.gate.problems import STATUSES


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MiB", 512 * MIB), ("1G", GIB), ("1.5 GiB", 3 * GIB // 2), ("1024", 1024), ("64k", 65536), (77, 77)],
)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1X", "GiB", "1e9", "1GiB ; rm", "9" * 40, "１GiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30s", 30), ("1h30m", 5400), ("7d", 604800), ("250ms", 0.25), (12.5, 12.5)]
)
def test_durations(text: float | str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-5s", "5x", "1h-2m", "s", "1h 30m"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=1 << 50))
def test_a_formatted_size_is_close_to_the_size(count: int) -> None:
    assert abs(parse_size(format_size(count)) - count) <= max(1, count * 0.06)


@pytest.mark.parametrize("name", ["a", "dev", "a-b-c", "x" * 40, "0"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "a--b", "A", "a_b", "../x", "a/b", "x" * 41, "ä", "a\n", "a b"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_name(name)
    assert refused.value.hint


@given(st.sampled_from(list(IdKind)))
def test_ids_are_typed_and_of_one_length(kind: IdKind) -> None:
    made = new_id(kind)
    assert len(made) == 24
    assert is_id(made, kind)
    assert len(body(made)) == 20
    assert not any(is_id(made, other) for other in IdKind if other is not kind)


@given(st.text())
def test_few_texts_are_ids(text: str) -> None:
    assert not is_id(text) or len(text) == 24


def test_environment_and_labels_are_checked() -> None:
    assert check_env({"A": "x=y\n"}) == {"A": "x=y\n"}
    for bad in ({"1A": ""}, {"A=B": ""}, {"A": "\0"}, {"A": "x" * 70000}):
        with pytest.raises(InvalidArgument):
            check_env(bad)
    for labels in ({"": "x"}, {"a b": "x"}, {"a": "\x1b[31m"}, {"a": "x" * 2000}, {f"k{n}": "" for n in range(65)}):
        with pytest.raises(InvalidArgument):
            check_labels(labels)


@pytest.mark.parametrize("limits", [Limits(cpus=0), Limits(cpus=-1), Limits(memory=-5), Limits(disk=1), Limits(pids=0)])
def test_absurd_limits(limits: Limits) -> None:
    with pytest.raises(InvalidArgument):
        limits.check()


def test_every_phase_has_a_way_on_and_ing_phases_a_deadline() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert TRANSITIONS[Phase.DELETED] == frozenset()
    for phase in set(Phase) - {Phase.DELETED, Phase.DELETING}:
        assert may_follow(phase, Phase.DELETING)
    for phase in TRANSITIONAL:
        assert phase in DEADLINES
        assert TRANSITIONS[phase] - TRANSITIONAL


def test_every_error_has_a_status() -> None:
    assert set(every_error()) == set(STATUSES)
