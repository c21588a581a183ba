"""`sandkeep doctor --deep`: proves on this host that its gVisor build saves memory and brings it back.

It runs a machine of its own on a clone of a template, beside whatever runs: boot, freeze, thaw, save, restore, several
times, with a counter that must go on with the same pid. A build off the tested list that passes is approved by its hash.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import anyio

from sandkeep.app import wiring
from sandkeep.app.findings import Finding
from sandkeep.app.settings import Settings
from sandkeep.app.setup import packages
from sandkeep.contracts.guest import ExecRequest, GuestResume
from sandkeep.domain.errors import Internal, SandkeepError
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import SandboxOnNode
from sandkeep.domain.quantities import MIB
from sandkeep.domain.sandbox import Limits, NetworkMode, Persistence, RuntimeKind, Spec
from sandkeep.drivers.runtime.runsc import build, control
from sandkeep.drivers.runtime.runsc.driver import GvisorRuntime
from sandkeep.engine import machine
from sandkeep.engine.parts import Parts, hostname
from sandkeep.engine.records import Record
from sandkeep.lib.files import write_json_durably

_CYCLES = 3
_COUNT = "n=0; while :; do n=$((n+1)); echo $$ $n > /tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.02; done"


async def examine(settings: Settings) -> list[Finding]:
    path = await packages.used_runsc(settings.runsc, wiring.RUNSC_PLACES, wiring.approved_builds(settings))
    if path is None:
        return [Finding("missing", "there is no runsc (gVisor)", "sandkeep setup fetches the tested build")]
    version, digest = await build.version(path), build.digest(path)
    try:
        await _prove(settings, path, digest)
    except (SandkeepError, OSError) as error:
        return [
            Finding(
                "warning", f"gVisor {version} did not pass: {error}", "use a build of the tested list: sandkeep setup"
            )
        ]
    passed = f"gVisor {version}: {_CYCLES} saves and restores passed; memory persistence is on"
    if version not in control.TESTED and digest not in wiring.approved_builds(settings):
        passed += " when the daemons start the next time: sandkeep down, then sandkeep up"
        approved = sorted({*wiring.approved_builds(settings), digest})
        write_json_durably(wiring.approved_file(settings), approved)
    return [Finding("ok", passed)]


@dataclass
class _Bench:
    """The machine under test and what it stands on."""

    parts: Parts
    runtime: GvisorRuntime
    record: Record


async def _prove(settings: Settings, binary: Path, digest: str) -> None:
    """Raises what fails. Leaves nothing behind."""
    runtime = GvisorRuntime(
        settings.run_folder / "deep",
        binary,
        f"{wiring.cgroup_parent(settings)}/deep",
        settings.gvisor_platform,
        frozenset({digest}),
    )
    parts = replace(wiring.make_parts(settings), runtimes={RuntimeKind.GVISOR: runtime})
    parts.records.load()
    template = next(iter(parts.records.templates.values()), None)
    if template is None:
        raise Internal("there is no template to test with", hint="sandkeep setup")
    await parts.disks.open()
    await parts.networks.open()
    await runtime.open()
    if not runtime.capabilities.available:
        raise Internal(runtime.capabilities.reason)
    spec = Spec(
        template.id,
        template.name,
        RuntimeKind.GVISOR,
        Persistence.FULL,
        Limits(memory=256 * MIB),
        network=NetworkMode.NONE,
    )
    # The last slot: the runner leases from the first.
    record = Record(
        SandboxOnNode(new_id(IdKind.SANDBOX), "", spec), 1, parts.networks.slots, "deep-check-" + digest[:16], boots=1
    )
    bench = _Bench(parts, runtime, replace(record, machine=parts.machine_id(record)))
    try:
        await parts.disks.create(record.id, template.id, spec.limits.disk)
        await _cycles(bench)
    finally:
        with anyio.CancelScope(shield=True):
            await runtime.kill(bench.record.machine or "")
            await parts.networks.detach(record.id, record.slot)
            await parts.disks.delete(record.id)
            await runtime.close()
            shutil.rmtree(settings.run_folder / "deep", ignore_errors=True)


async def _cycles(bench: _Bench) -> None:
    parts, runtime = bench.parts, bench.runtime
    attachment = await parts.networks.attach(bench.record.id, bench.record.slot, NetworkMode.NONE)
    await runtime.boot(parts.plan(bench.record))
    await machine.introduce(parts, bench.record)
    await _run(bench, f"({_COUNT}) >/dev/null 2>&1 & disown")
    for cycle in range(_CYCLES):
        before = await _counted(bench)
        assert bench.record.machine is not None
        await runtime.freeze(bench.record.machine)
        await runtime.thaw(bench.record.machine)
        generation = new_id(IdKind.GENERATION)
        folder = await parts.disks.make_memory_folder(bench.record.id, generation)
        await parts.guest.hang_up(attachment.address)
        await parts.networks.reset_tcp(attachment)
        await runtime.prepare_save(bench.record.machine)
        image = await runtime.save(bench.record.machine, folder)
        await runtime.kill(bench.record.machine)
        await parts.networks.detach(bench.record.id, bench.record.slot)
        bench.record = replace(bench.record, boots=cycle + 2)
        bench.record = replace(bench.record, machine=parts.machine_id(bench.record))
        attachment = await parts.networks.attach(bench.record.id, bench.record.slot, NetworkMode.NONE)
        await runtime.restore(parts.plan(bench.record), folder, image)
        endpoint = parts.endpoint(bench.record)
        await parts.guest.wait_ready(endpoint, parts.settings.boot_deadline)
        await parts.guest.resumed(endpoint, GuestResume(hostname(bench.record), generation, ""), parts.clock.now)
        await parts.disks.drop_generation(bench.record.id, generation)
        after = await _counted(bench)
        if after[0] != before[0] or after[1] <= before[1]:
            raise Internal(f"a process did not go on after a restore: before {before}, after {after}")


async def _run(bench: _Bench, line: str) -> str:
    request = ExecRequest(("/bin/bash", "-c", line), user="root", timeout=20)
    done = await bench.parts.guest.exec(bench.parts.endpoint(bench.record), request)
    if done.exit_code:
        raise Internal(f"a command inside ended with {done.exit_code}: {done.stderr.decode(errors='replace')[:200]}")
    return done.stdout.decode(errors="replace")


async def _counted(bench: _Bench) -> tuple[int, int]:
    """(pid, count), after the counter has moved."""
    look = "b=$(cat /tmp/count)"
    line = f'{look}; a=$b; for i in $(seq 200); do {look}; [ "$a" != "$b" ] && break; sleep 0.05; done; echo $b'
    pid, count = (await _run(bench, f"until [ -s /tmp/count ]; do sleep 0.01; done; {line}")).split()
    return int(pid), int(count)
