"""The reduced matrix of `make torture`: see torture.reduced."""

from collections.abc import Iterator

import pytest

from support.faults.stand import Stand
from torture.matrix import SCENARIOS, Scenario, journalled_lines
from torture.reduced import Reduced


@pytest.fixture(scope="module")
def reduced() -> Iterator[Reduced]:
    with Stand.made() as stand:
        yield Reduced(stand)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_death_in_the_middle_loses_nothing(reduced: Reduced, scenario: Scenario) -> None:
    for made in reduced.survives(scenario):
        print(made)


def test_every_line_that_journals_was_reached_and_nothing_is_left(reduced: Reduced) -> None:
    assert reduced.reach(journalled_lines()) == set()
    assert len(reduced.died_at) > 30
    assert reduced.stand.left_behind() is None
    assert reduced.stand.unnoticed(thorough=True) is None
