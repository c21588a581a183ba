"""Whom a trial kills, by process id: daemons, the resolver, and what a machine consists of."""

import contextlib
import glob
import os
import signal
import subprocess
from pathlib import Path

from sandkeep.app.settings import Settings
from sandkeep.app.wiring import RUNSC_PLACES, first_existing
from sandkeep.drivers.runtime.runc import state as runc_state
from sandkeep.drivers.runtime.runsc import state as runsc_state
from support.faults.clock import alive
from support.instance import Instance, until
from support.machines import control_groups

DAEMONS = {"runner": ("runner",), "server": ("server",), "both": ("server", "runner")}
OF_MACHINE = ("machine", "gofer", "agent")
_PATIENCE = 5.0
VICTIMS = (*DAEMONS, "resolver", *OF_MACHINE)


def resolver_pid(instance: Instance) -> int | None:
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
        except OSError:
            continue
        if b"resolver/__main__.py" in command and b"--resolv-conf=" in command:
            settings = instance.root / "run/resolver.json"
            if settings.exists() and folder.name in settings.read_text():
                return int(folder.name)
    return None


class Machines:
    """The machines of one instance, as kernel and runtimes know them."""

    def __init__(self, instance: Instance, settings: Settings) -> None:
        self._run = settings.run_folder
        self._runsc = first_existing(settings.runsc, RUNSC_PLACES)
        self._tops = control_groups(f"sandkeep-{instance.name}/")

    def pids(self, sandbox_id: str) -> set[int]:
        """All processes of the host in its machines' control groups."""
        found: set[int] = set()
        for top in self._tops:
            for file in glob.glob(f"{top}/*/*{_body(sandbox_id)}*/**/cgroup.procs", recursive=True):
                with contextlib.suppress(OSError):
                    found |= {int(pid) for pid in Path(file).read_text().split()}
        return found

    def kill(self, victim: str, sandbox_id: str) -> bool:
        """`machine`: gVisor's sentry, or all of runc's container; `gofer`; `agent`: the first process inside. False when
        there is no such thing now."""
        name = self._name(sandbox_id)
        if name is None:
            return False
        container = runsc_state.load(self._run / "runsc/state", name)
        if container:
            if victim == "agent":
                argv = [str(self._runsc), f"--root={self._run}/runsc/state", "kill", name, "KILL"]
                try:  # a sentry that was just frozen does not answer
                    return subprocess.run(argv, capture_output=True, timeout=_PATIENCE).returncode == 0
                except subprocess.TimeoutExpired:
                    return False
            return kill_hard(container.sentry if victim == "machine" else container.gofer)
        first = runc_state.init_pid(self._run / "runc/state", name)
        if victim == "agent":
            return kill_hard(first)
        pids = self.pids(sandbox_id) if victim == "machine" else set()
        return sum(kill_hard(pid) for pid in pids) > 0  # all of them, so no any()

    def _name(self, sandbox_id: str) -> str | None:
        for runtime in ("runsc", "runc"):
            for folder in (self._run / runtime / "machines").glob(f"*-{_body(sandbox_id)}-*"):
                return folder.name
        return None


def kill_hard(pid: int | None) -> bool:
    if not pid or not alive(pid):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True


def kill_and_wait(pid: int | None) -> bool:
    done = kill_hard(pid)
    until(lambda: not alive(pid), 10, wait=0.002)
    return done


def _body(sandbox_id: str) -> str:
    return sandbox_id.partition("_")[2]
