"""Where trials are made: one instance whose daemons have a clock in them, and bystanders that must not notice anything."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandkeep.app import inspection
from sandkeep.app import settings as settings_module
from sandkeep.engine.records import Records
from sandkeep.sdk import Client, Sandbox
from support import census
from support.faults import daemons as program
from support.faults.clock import Clock, alive
from support.faults.victims import Machines, kill_and_wait
from support.instance import SMALLER, Instance, until
from support.witness import ask, start_witness

RUNTIMES = ("gvisor", "runc")
SMALL = "small"
"""A template with little on its disk, for what is packed and carried."""
_LONGEST_GAP = 5.0
_LETTER = {"runner": b"r", "server": b"s"}


@dataclass
class Bystander:
    """`pids`: of its machine on the host; `witness`: the witness's own inside. A saved one has neither."""

    sandbox: Sandbox
    phase: str
    pids: set[int]
    witness: int


class Stand:
    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        with _environment(instance):
            self.settings = settings_module.load(instance.name)
        self.machines = Machines(instance, self.settings)
        self.clock = Clock(instance.root / "clock")
        self._keeper = subprocess.Popen(
            [sys.executable, program.__file__, instance.name, str(instance.root / "log"), str(instance.root / "clock")],
            env={**instance.env, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
        )
        self._loop = asyncio.Runner()
        saved = instance.config
        self.client = Client(saved["url"], saved["key"], timeout=90.0)
        self.hasty = Client(saved["url"], saved["key"], timeout=90.0, retry_for=0.0)
        self.bystanders: list[Bystander] = []
        self.before: dict[str, list[str]] = {}

    @classmethod
    @contextlib.contextmanager
    def made(cls) -> Iterator["Stand"]:
        with Instance.made("test", SANDKEEP_BOOT_DEADLINE="10") as instance:
            instance.run("down")
            stand = cls(instance)
            try:
                stand.revive()
                stand._settle_in()
                yield stand
            finally:
                stand._close()

    def _close(self) -> None:
        assert self._keeper.stdin
        self._keeper.stdin.close()
        self._keeper.wait()
        for name in _LETTER:  # without the clock nothing holds them up
            pid = self.pid(name)
            if alive(pid):
                os.kill(pid or 0, signal.SIGTERM)
        with contextlib.suppress(AssertionError):
            until(lambda: not any(alive(self.pid(name)) for name in _LETTER), 15)
        self.clock.close()
        self.client.transport.close()
        self.hasty.transport.close()
        self._loop.close()

    def _settle_in(self) -> None:
        self.client.templates.build(SMALL, [SMALLER], parent="test", runtime="runc", memory="128MiB")
        assert until(lambda: self.client.templates.get(SMALL).phase != "building", 60)
        assert self.client.templates.get(SMALL).phase == "ready"
        for runtime in RUNTIMES:
            for hold in (None, "memory" if runtime == "runc" else "disk"):
                sandbox = self.create(runtime)
                witness = start_witness(sandbox)
                witness.detach()
                assert witness.pid is not None
                if hold:
                    sandbox.pause(hold=hold)  # type: ignore[arg-type]
                pids = self.machines.pids(sandbox.id)
                self.bystanders.append(Bystander(sandbox, sandbox.phase, pids, witness.pid))
        attached = [one for one in self.bystanders if one.pids]
        self.before = census.settled_census(self.instance, len(attached))

    # -- daemons

    def pid(self, daemon: str) -> int | None:
        with contextlib.suppress(OSError):
            return self.instance.pid(daemon)
        return None

    def kill(self, *daemons: str) -> None:
        for name in daemons:
            kill_and_wait(self.pid(name))

    def revive(self) -> None:
        """Start what is dead, and return when the platform serves again."""
        assert self._keeper.stdin
        missing = [name for name in _LETTER if not alive(self.pid(name))]
        for name in missing:
            self._keeper.stdin.write(_LETTER[name])
        self._keeper.stdin.flush()
        until(lambda: all(alive(self.pid(name)) for name in _LETTER), 30)
        until(self._serves, 60)

    def _serves(self) -> bool:
        try:
            with urllib.request.urlopen(self.settings.url + "/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    # -- sandboxes

    def create(self, runtime: str, *, client: Client | None = None, **options: Any) -> Sandbox:
        full = "full" if runtime == "gvisor" else "volume"
        wanted = {"template": "test", "runtime": runtime, "memory": "256MiB", "disk": "256MiB", "persistence": full}
        return Sandbox.create(client=client or self.client, **{**wanted, **options})

    # -- looking from outside

    def records(self) -> Records:
        found = Records(self.settings.node_folder)
        found.load()
        return found

    def fsck(self) -> list[dict[str, str]]:
        """What `sandkeep fsck` says, without starting it."""
        return list(self._loop.run(inspection.inspect(self.settings))["findings"])

    def unnoticed(self, *, thorough: bool) -> str | None:
        """What a bystander noticed, or None. Its longest gap is remembered by itself, so asking now and then is enough."""
        for one in self.bystanders:
            one.sandbox.refresh()
            if one.sandbox.phase != one.phase:
                return f"a bystander is {one.sandbox.phase}, not {one.phase}: {one.sandbox.reason}"
            if one.pids != self.machines.pids(one.sandbox.id):
                return "a bystander's machine has other processes"
            if thorough and one.phase == "running":
                told = ask(one.sandbox)
                if told["pid"] != one.witness or told["gap"] > _LONGEST_GAP:
                    return f"a bystander's witness says {told}"
        return None

    def left_behind(self, timeout: float = 15.0) -> str | None:
        try:
            census.same_again(self.instance, self.before, timeout)
        except AssertionError as error:
            return str(error)
        return None


@contextlib.contextmanager
def _environment(instance: Instance) -> Iterator[None]:
    """Settings are read from this process's environment, and from the folder that it named when it began."""
    before, folder = dict(os.environ), settings_module.CONFIG_FOLDER
    settings_module.CONFIG_FOLDER = instance.root / "etc"
    os.environ.update({key: value for key, value in instance.env.items() if key.startswith("SANDKEEP_")})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        settings_module.CONFIG_FOLDER = folder
