"""Pause to disk and resume to the first exec, with so many megabytes of memory that a process has dirtied."""

from functools import partial

from bench.bare import Machine
from bench.lifecycle import Bench
from bench.measure import BARE, OURS, alternating
from sandkeep.sdk import Sandbox
from support.instance import until

SIZES = (0, 64, 256)
_MEMORY = "640MiB"
_HOLD = "import os, time; kept = os.urandom({size} << 20); open('/tmp/ready', 'w').close(); time.sleep(1e6)"
"""Random bytes: nothing that a file system or a checkpoint could make smaller."""


def pause_and_resume(bench: Bench) -> None:
    for size in SIZES:
        sandbox, machine = bench.sandbox("full", memory=_MEMORY), bench.machine()
        line = f"python3 -c {_HOLD.format(size=size)!r} >/dev/null 2>&1 &"
        if size:
            sandbox.exec(line)
            until(lambda: sandbox.exec("test -e /tmp/ready").exit_code == 0)
            machine.ask("sh", "-c", line + " while ! test -e /tmp/ready; do sleep 0.05; done")
        alternating(bench.rounds, partial(_ours, bench, sandbox, size), partial(_bare, bench, machine, size))
        sandbox.delete()
        machine.remove()


def _ours(bench: Bench, sandbox: Sandbox, size: int) -> None:
    with bench.results.timed(f"pause-{size}", bench.runtime, OURS):
        sandbox.pause(hold="disk")
    with bench.results.timed(f"resume-{size}", bench.runtime, OURS):
        sandbox.resume()
        assert sandbox.exec(["true"]).exit_code == 0


def _bare(bench: Bench, machine: Machine, size: int) -> None:
    with bench.results.timed(f"pause-{size}", bench.runtime, BARE):
        sums = machine.hibernate()
    machine.renew()
    with bench.results.timed(f"resume-{size}", bench.runtime, BARE):
        machine.restore(sums)
    machine.drop_saved()
