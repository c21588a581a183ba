"""The reduced matrix of `make torture`: each step of each operation on both runtimes once with the death of the runner, and
one of the other deaths for each operation. The steps are found by running the operations, and checked against the code."""

from random import Random

from support.faults.stand import Stand
from torture import trial
from torture.matrix import SCENARIOS, sample
from torture.run import measured


def test_a_death_at_each_step_loses_nothing() -> None:
    scenarios = {scenario.name: scenario for scenario in SCENARIOS}
    with Stand.made() as stand:
        matrix = measured(stand, "")
        kept = sample(matrix)
        assert {cell.victim for cell in kept} == {cell.victim for cell in matrix}
        for number, cell in enumerate(kept):
            chance = Random(cell.key)
            outcome = trial.run(stand, cell, scenarios[cell.scenario], matrix[cell], chance, thorough=number % 20 == 0)
            assert outcome.out in ("ok", "void"), f"{cell.key}: {outcome}\n{stand.instance.logs()}"
