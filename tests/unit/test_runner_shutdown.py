"""What the runner ends when the host stops: machines that are frozen, for which systemd would wait."""

from types import SimpleNamespace

import pytest

from sandkeep.app import systemd
from sandkeep.app.runner import end_paused
from sandkeep.contracts.runtime import MachineState
from sandkeep.domain.errors import Internal
from sandkeep.lib import process


class Runtime:
    def __init__(self, *machines: MachineState, available: bool = True) -> None:
        self.capabilities = SimpleNamespace(available=available)
        self.killed: list[str] = []
        self._machines = machines

    async def machines(self) -> list[MachineState]:
        assert self.capabilities.available
        return list(self._machines)

    async def kill(self, machine_id: str) -> None:
        self.killed.append(machine_id)
        if machine_id == "stubborn":
            raise Internal("it does not die")


async def test_frozen_machines_end_and_the_others_are_systemd_s() -> None:
    frozen = MachineState("frozen", (1,), True)
    one = Runtime(MachineState("stubborn", (3,), True), MachineState("runs", (2,), False), frozen)
    none = Runtime(available=False)
    await end_paused([none, one])  # type: ignore[list-item]
    assert one.killed == ["stubborn", "frozen"]


@pytest.mark.parametrize(("said", "stops"), [("stopping", True), ("running", False), ("degraded", False), ("", False)])
async def test_only_a_stop_of_the_host_counts(said: str, stops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(stdout=said + "\n")

    monkeypatch.setattr(process, "run", run)
    monkeypatch.setattr(systemd, "installed", lambda _: True)
    assert await systemd.host_stops("lab") is stops
    monkeypatch.setattr(systemd, "installed", lambda _: False)
    assert not await systemd.host_stops("lab")
