"""The machine behind a sandbox: boot it on its disk, and end it. Used by every operation that needs one or is rid of one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import anyio

from sandkeep.contracts.guest import Becoming, GuestInit, GuestResume, Resumed
from sandkeep.contracts.network import Attachment
from sandkeep.contracts.runtime import MemoryImage, Runtime
from sandkeep.domain.errors import Internal, SandkeepError
from sandkeep.domain.sandbox import ConditionKind, Phase, RuntimeKind
from sandkeep.engine.journal import Entry
from sandkeep.engine.parts import Parts, hostname
from sandkeep.engine.records import Record
from sandkeep.engine.undo import Undos
from sandkeep.lib.together import together


def next_machine(parts: Parts, record: Record, undos: Undos) -> Record:
    """The record with the id of its next machine, and a leased slot. Raises NoCapacity."""
    fresh = replace(record, boots=record.boots + 1, slot=parts.slots.lease())

    async def release() -> None:
        parts.slots.release(fresh.slot)

    undos.push("slot", release)
    return replace(fresh, machine=parts.machine_id(fresh))


async def connect(parts: Parts, record: Record, entry: Entry, undos: Undos, *, blocked: bool) -> Attachment:
    entry.step("network.attach", slot=record.slot)
    undos.push("network", lambda: parts.networks.detach(record.id, record.slot))
    return await parts.networks.attach(record.id, record.slot, record.spec.network, blocked=blocked)


async def boot(parts: Parts, record: Record, entry: Entry, undos: Undos, *, new_identity: bool = False) -> Record:
    """Network and disk are there: start the machine, and return when its agent answers and has its values. `new_identity`:
    the disk is a copy of another sandbox's."""
    runtime = parts.runtime(record.spec.runtime)
    record = replace(record, agent=parts.settings.agent_folder.name)
    plan = parts.plan(record)
    entry.step("machine.boot", machine=plan.id)
    undos.push("machine", lambda: runtime.kill(plan.id))
    await runtime.boot(plan)
    entry.step("guest.init")
    async with while_alive(runtime, plan.id):
        await introduce(parts, record, new_identity=new_identity)
    now = parts.clock.now()
    ready = record.with_condition(ConditionKind.GUEST_READY, True, "the agent answers", now)
    if any(condition.kind is ConditionKind.OUT_OF_MEMORY for condition in ready.conditions):
        ready = ready.with_condition(ConditionKind.OUT_OF_MEMORY, False, "another machine was started", now)
    ready = ready.with_condition(ConditionKind.DISK_READY, True, "the disk is attached", now)
    return replace(ready, phase=Phase.RUNNING, hold=None, exited=0, owed=None)


async def restore(
    parts: Parts,
    record: Record,
    folder: Path,
    image: MemoryImage,
    entry: Entry,
    undos: Undos,
    *,
    event: str,
    credential: str | None = None,
) -> Resumed:
    """Network and disk are there: it goes on from the image, and its agent has told it what changed when this returns.
    `credential`: of the sandbox whose memory this is a copy of; it then takes an identity of its own, anew or the one
    that it is owed."""
    runtime = parts.runtime(record.spec.runtime)
    plan = parts.plan(record)
    entry.step("memory.restore", machine=plan.id)
    undos.push("machine", lambda: runtime.kill(plan.id))
    await runtime.restore(plan, folder, image)
    endpoint = parts.endpoint(record)
    become = None
    if credential is not None:
        env = {**parts.settings.proxy_env, **record.spec.env}
        become = Becoming(record.id, endpoint.credential, env, record.owed_identity)
        endpoint = replace(endpoint, credential=credential)
    values = GuestResume(hostname(record), plan.id, event, become)
    async with while_alive(runtime, plan.id):
        await parts.guest.wait_ready(endpoint, parts.settings.boot_deadline)
        entry.step("guest.resume")
        return await parts.guest.resumed(endpoint, values, parts.clock.now)


@asynccontextmanager
async def while_alive(runtime: Runtime, machine_id: str) -> AsyncIterator[None]:
    """The body waits for the agent of this machine: it does not wait until its deadline for one that has ended. Raises
    Internal then."""

    async def watch() -> None:
        raise Internal(f"the machine did not come up: {await runtime.wait_exit(machine_id)}")

    async with together() as side:
        side.start_soon(watch)
        yield
        side.cancel_scope.cancel()


async def introduce(parts: Parts, record: Record, *, new_identity: bool = False) -> None:
    """Wait for a fresh agent and tell it who it is. Raises GuestUnreachable, GuestError."""
    endpoint = parts.endpoint(record)
    await parts.guest.wait_ready(endpoint, parts.settings.boot_deadline)
    network = parts.networks.describe(record.id, record.slot, record.spec.network)
    await parts.guest.init(
        endpoint,
        GuestInit(
            sandbox_id=record.id,
            hostname=hostname(record),
            env={**parts.settings.proxy_env, **record.spec.env},
            timestamp=parts.clock.now(),
            dns=network.dns,
            memory_limit=record.spec.limits.memory,
            oom_guard=record.spec.runtime is RuntimeKind.GVISOR,
            ca_bundle=parts.settings.ca_bundle,
            generation=record.machine or "",
            new_identity=new_identity or record.owed is not None,
            identity=record.owed_identity,
        ),
    )


async def apply_limits(parts: Parts, record: Record) -> None:
    """What the record says, on a machine that may have been given something else: an update that was undone. It may be
    dead, or deaf: then the next one begins with these limits."""
    if record.machine is None:
        return
    with suppress(SandkeepError):
        await parts.runtime(record.spec.runtime).set_limits(record.machine, record.spec.limits)
        if record.phase is Phase.RUNNING:
            with anyio.move_on_after(parts.settings.quiesce_deadline):
                await introduce(parts, record)


async def end(parts: Parts, record: Record) -> Record:
    """Kill the machine and take its network away; idempotent, works in whatever state they are."""
    if record.slot:
        with suppress(Exception):
            await parts.guest.hang_up(parts.endpoint(record).address)
    if record.machine:
        runtime = parts.runtimes.get(record.spec.runtime)
        if runtime:
            await runtime.kill(record.machine)
    if record.slot:
        await parts.networks.detach(record.id, record.slot)
        parts.slots.release(record.slot)
    if any(condition.kind is ConditionKind.GUEST_READY and condition.value for condition in record.conditions):
        record = record.with_condition(ConditionKind.GUEST_READY, False, "it has no machine", parts.clock.now())
    return replace(record, machine=None, slot=0)


async def flush(parts: Parts, record: Record, event: str = "") -> None:
    """Let the agent write back what the guest holds; a guest that does not answer is ended all the same. `event`: its quiesce
    hooks run first."""
    with suppress(Exception), anyio.move_on_after(parts.settings.quiesce_deadline + 1):
        await parts.guest.flush(parts.endpoint(record), parts.settings.quiesce_deadline, event)


async def unquiesce(parts: Parts, record: Record, event: str) -> None:
    """Its thaw hooks run. One that does not answer runs on all the same."""
    with suppress(Exception), anyio.move_on_after(parts.settings.quiesce_deadline + 1):
        await parts.guest.thawed(parts.endpoint(record), parts.settings.quiesce_deadline, event)
