"""The reduced matrix of `make torture`: each step once with the death of the runner, in one of the operations that make it,
and one of the other deaths for every second operation. The steps are found by running the operations, and checked against
the code."""

from collections.abc import Iterator
from random import Random

import pytest

from support.faults.stand import Stand
from torture import trial
from torture.matrix import SCENARIOS, Cell, sample
from torture.run import measured

_PARTS = 4


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with Stand.made() as made:
        yield made


@pytest.fixture(scope="module")
def matrix(stand: Stand) -> dict[Cell, float]:
    return measured(stand, "", thin=True)


@pytest.mark.parametrize("part", range(_PARTS))
def test_a_death_at_each_step_loses_nothing(stand: Stand, matrix: dict[Cell, float], part: int) -> None:
    scenarios = {scenario.name: scenario for scenario in SCENARIOS}
    kept = sample(matrix)
    assert {cell.victim for cell in kept} == {cell.victim for cell in matrix}
    mine = kept[part::_PARTS]
    for number, cell in enumerate(mine, 1):
        thorough = number == len(mine)
        outcome = trial.run(
            stand, cell, scenarios[cell.scenario], matrix[cell], Random(cell.key), thorough=thorough, patient=0.2
        )
        assert outcome.out in ("ok", "void"), f"{cell.key}: {outcome}\n{stand.instance.logs()}"
