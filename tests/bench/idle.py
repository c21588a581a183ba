"""What a hundred idle sandboxes of 256 MiB cost: memory of the host, processor time, and the size of the daemons."""

import asyncio
import os
import time
from pathlib import Path

from bench.lifecycle import Bench
from bench.measure import BARE, OURS, say
from sandkeep.sdk import AsyncClient, AsyncSandbox
from support.instance import Instance

_AT_ONCE = 4
_WINDOW = 20.0
"""Seconds over which processor time is counted."""
_SETTLE = 5.0


def idle(bench: Bench, instance: Instance, count: int) -> None:
    """`count` of ours, then a quarter as many bare ones, whose processor time is scaled."""
    before = _available()
    made = asyncio.run(_create(bench, count))
    say(f"{bench.runtime}: {count} idle sandboxes, looking at them for {_WINDOW:g} s")
    groups = _groups(f"sandkeep-{instance.name}")
    daemons = [pid for name in ("server", "runner") if (pid := instance.pid(name))] + _helpers(instance)
    _report(bench, OURS, before, count, groups, daemons)
    for name in ("server", "runner"):
        bench.results.add(name, bench.runtime, OURS, _resident(instance.pid(name) or 0))
    asyncio.run(_delete(bench, made))

    time.sleep(_SETTLE)
    before, few = _available(), max(5, count // 4)
    machines = [bench.machine() for _ in range(few)]
    for machine in machines:
        bench.bare.run(bench.bare.guest.hang_up(machine.endpoint.address))
    _report(bench, BARE, before, few, _groups("sandkeep-bench"), [])
    for machine in machines:
        machine.remove()


def _report(bench: Bench, side: str, before: float, count: int, groups: list[Path], daemons: list[int]) -> None:
    time.sleep(_SETTLE)
    bench.results.add("idle-memory", bench.runtime, side, (before - _available()) / count / 1e6)
    begun, used = time.monotonic(), _cpu(groups, daemons)
    time.sleep(_WINDOW)
    share = (_cpu(groups, daemons) - used) / (time.monotonic() - begun)
    bench.results.add("idle-cpu", bench.runtime, side, share * 100 * 100 / count)


async def _create(bench: Bench, count: int) -> list[str]:
    made, gate = [], asyncio.Semaphore(_AT_ONCE)
    async with AsyncClient(bench.client.url, bench.client.transport.address.key) as client:

        async def one() -> None:
            async with gate:
                sandbox = await AsyncSandbox.create(
                    template=bench.template,
                    runtime=bench.runtime,  # type: ignore[arg-type]
                    memory=bench.memory,
                    client=client,
                )
                assert (await sandbox.exec(["true"])).exit_code == 0
                made.append(sandbox.id)

        await asyncio.gather(*(one() for _ in range(count)))
    return made


async def _delete(bench: Bench, made: list[str]) -> None:
    gate = asyncio.Semaphore(_AT_ONCE)
    async with AsyncClient(bench.client.url, bench.client.transport.address.key) as client:

        async def one(sandbox_id: str) -> None:
            async with gate:
                await (await AsyncSandbox.get(sandbox_id, client=client)).delete()

        await asyncio.gather(*map(one, made))


def _available() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel tells no MemAvailable")


def _groups(parent: str) -> list[Path]:
    """Files that count the nanoseconds of everything below this group: of version 1, or of version 2."""
    places = (f"/sys/fs/cgroup/cpuacct/{parent}/cpuacct.usage", f"/sys/fs/cgroup/cpu,cpuacct/{parent}/cpuacct.usage")
    found = [Path(place) for place in places if Path(place).exists()][:1]
    return found or [Path(f"/sys/fs/cgroup/{parent}/cpu.stat")]


def _cpu(groups: list[Path], pids: list[int]) -> float:
    """Seconds of processor time so far."""
    total = 0.0
    for path in groups:
        text = path.read_text()
        total += int(text) / 1e9 if text.strip().isdigit() else int(text.split()[1]) / 1e6
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _helpers(instance: Instance) -> list[int]:
    """Keeper and resolver of the instance: whatever else has its name in the command line or its run folder."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            line = _line(path)
            if ("keeper" in line and instance.name in line) or ("resolver" in line and str(instance.root) in line):
                found.append(int(path.name))
    return found


def _line(process: Path) -> str:
    try:
        return (process / "cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(f"process {pid} has no size")
