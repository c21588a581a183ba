"""The reduced matrix of `make test`: each step that any operation journals meets the death of the runner once, and an
operation that makes no new one meets another death. Steps are found while they are made: nothing is run for that alone.
"""

from collections import Counter
from random import Random

from support.faults.clock import Point
from support.faults.stand import Stand
from support.faults.victims import OF_MACHINE, VICTIMS
from torture import trial
from torture.matrix import LASTS, SCENARIOS, Scenario, has

_MOMENTS = ("at", "before", "amid")
_AT_ITS_ENDS = ("begin", "close")
"""Nothing was done yet, or the record is durable, as at the step before."""
_COUNTED = 8
"""Trials between two counts of what is on the host."""

_MOST = 20
"""Trials of one operation."""


class Reduced:
    """`reached`: lines of the engine that journal, as `file:line`."""

    def __init__(self, stand: Stand) -> None:
        self.stand, self.chance = stand, Random(0)
        self.reached: set[str] = set()
        self.died_at: set[str] = set()
        self._deaths: Counter[str] = Counter()
        self._sites: dict[str, set[str]] = {}
        self._trials = 0

    def survives(self, scenario: Scenario) -> list[str]:
        """The trials made. Raises AssertionError when one lost, stuck, leaked or disagreed."""
        number = SCENARIOS.index(scenario)
        runtime = scenario.runtimes[number % len(scenario.runtimes)]
        made: list[str] = []
        ended = False
        while True:
            aim: _Aim | _InCommand = _Aim(self, runtime, 0 if made else 1 + number % 5)
            if scenario.name == "exec":
                aim = _InCommand(self.next_victim(runtime, ""), self.chance.random() * LASTS)
            self._trials += 1
            counted = self._trials % _COUNTED == 0
            outcome = trial.run(  # by a client that tries again until it ended once: then all its steps were passed
                self.stand, runtime, scenario, aim, patient=not ended, thorough=counted, counted=counted
            )
            made.append(f"{runtime}/{scenario.name}/{aim.name}")
            self._deaths[aim.victim] += outcome.out != "void"
            self._sites.setdefault(scenario.name, set()).update(aim.sites)
            assert outcome.out in ("ok", "void"), f"{made[-1]}: {outcome}\n{self.stand.instance.logs()}"
            ended |= outcome.answer == "ack"
            if ended and not (aim.is_new and self.new(aim.passed)):
                return made
            assert len(made) < _MOST, f"{runtime}/{scenario.name} never ends: {made}"

    def reach(self, lines: set[str]) -> set[str]:
        """Those of them that no operation reaches, without a death either: what had died may have been finished by recovery.
        The operations that came nearest to them are run first."""
        left = lines - self.reached
        for scenario in sorted(SCENARIOS, key=lambda one: _distance(left, self._sites.get(one.name, set()))):
            for runtime in scenario.runtimes:
                if not lines - self.reached:
                    return set()
                found = {seen.point.site for seen in trial.record(self.stand, runtime, scenario)}
                print(f"{runtime}/{scenario.name} reaches {found & lines - self.reached} of {lines - self.reached}")
                self.reached |= found
        return lines - self.reached

    def new(self, steps: set[str]) -> set[str]:
        return steps - self.died_at - set(_AT_ITS_ENDS)

    def next_victim(self, runtime: str, subject: str) -> str:
        machine = subject.startswith("sbx_") and bool(self.stand.machines.pids(subject))
        able = [one for one in VICTIMS if has(runtime, one) and (machine or one not in OF_MACHINE)]
        return min(able, key=lambda victim: (self._deaths[victim], victim))


def _distance(lines: set[str], sites: set[str]) -> int:
    """Between the nearest two of one module, in lines. The calls of a deletion are sites, too, and no lines."""
    places = [(line.split(":"), site.split(":")) for line in lines for site in sites if ":" in site]
    return min((abs(int(at) - int(near)) for (of, at), (other, near) in places if of == other), default=1 << 30)


class _Aim:
    """The runner, at the first step at which it has not died yet; else, at the `last` step (from 1), whose turn it is."""

    in_command = False

    def __init__(self, reduced: Reduced, runtime: str, last: int) -> None:
        self._reduced, self._runtime, self._last = reduced, runtime, last
        self.victim, self.delay, self.name, self.is_new = "", 0.0, "none", False
        self.passed: set[str] = set()
        self.sites: set[str] = set()

    def takes(self, point: Point) -> bool:
        self._reduced.reached.add(point.site)
        self.sites.add(point.site)
        self.passed.add(point.step)
        if self.victim:
            return False
        self._last -= point.moment == "at"
        moment = _MOMENTS[len(self._reduced.died_at) % len(_MOMENTS)]
        if self._reduced.new({point.step}):
            if point.moment != ("before" if moment == "before" else "at"):
                return False
            self.victim, self.is_new = "runner", True
            self._reduced.died_at.add(point.step)
            self.delay = self._reduced.chance.random() * LASTS if moment == "amid" else 0.0
        elif self._last == 0 and point.moment == "at":
            self.victim, moment = self._reduced.next_victim(self._runtime, point.subject), "at"
        else:
            return False
        self.name = f"{point.verb}.{point.step}/{moment}/{self.victim}"
        return True


class _InCommand:
    """In the middle of a command, which no step tells."""

    in_command, is_new = True, False

    def __init__(self, victim: str, delay: float) -> None:
        self.victim, self.delay, self.name = victim, delay, f"exec/amid/{victim}"
        self.passed: set[str] = set()
        self.sites: set[str] = set()

    def takes(self, _: Point) -> bool:
        return False
