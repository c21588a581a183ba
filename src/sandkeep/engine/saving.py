"""The save of a running machine's memory, in the order that gVisor needs (the quiesce protocol: outside connections are reset
first, then a dry checkpoint, then the real one). A pause to disk ends the machine afterwards; a snapshot lets it run on.
"""

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from sandkeep.contracts.network import Attachment
from sandkeep.contracts.runtime import MemoryImage, Runtime
from sandkeep.domain.errors import GuestError, Internal, PauseFailed, SandkeepError
from sandkeep.engine.admission import admit_save
from sandkeep.engine.journal import Entry
from sandkeep.engine.parts import Parts
from sandkeep.engine.records import Generation, Record
from sandkeep.engine.undo import Undos
from sandkeep.lib.files import open_plain, sync_files
from sandkeep.lib.together import together

_PROBES = 4
_DIGEST_WAIT = 0.03
"""Seconds in which programs inside meet the resets of their connections (engine reference, section 3.4)."""


class Save:
    """One save, from the look whether it can be made to its durable files. event: told to the sandbox's own hooks; stays: the
    machine runs on afterwards."""

    def __init__(self, parts: Parts, record: Record, generation: str, event: str, *, stays: bool = False) -> None:
        assert record.machine is not None
        self._parts = parts
        self._record = record
        self._machine = record.machine
        self._runtime = parts.runtime(record.spec.runtime)
        self._attachment = parts.networks.describe(record.id, record.slot, record.spec.network)
        self._generation = generation
        self._event = event
        self._stays = stays
        self._image = MemoryImage(())
        self._checksums: dict[str, str] = {}
        self._reset = False
        self.held = 0.0
        """Seconds that the guest stood still, once it runs on."""
        self._stopped_at = 0.0

    async def check(self) -> None:
        """Raises PauseFailed, NoCapacity. Nothing was touched."""
        usage = await self._runtime.usage(self._machine)
        memory = usage.memory if usage else 0
        admit_save(await self._parts.capacity(), self._parts.settings.rules, memory, stays=self._stays)
        await self._check_savable()

    async def _check_savable(self) -> None:
        """Raises PauseFailed, naming process and file, when gVisor could not save the memory."""
        patience = self._parts.settings.quiesce_deadline
        try:
            found = await self._parts.guest.quiesce(self._parts.endpoint(self._record), patience, self._event)
        except GuestError as error:
            raise PauseFailed(
                f"its agent could not say whether its memory can be saved: {error.message}",
                hint="stop it, or pause with --or-disk to keep the disk only",
                connections_reset=False,
            ) from error
        if found:
            listed = ", ".join(f"{item.process} (pid {item.pid}) {item.path}" for item in found[:5])
            raise PauseFailed(
                f"{len(found)} deleted but still open files cannot be saved with the memory: {listed}",
                hint="restart these processes, or keep the disk only (pause --or-disk, snapshot --kind disk)",
                connections_reset=False,
                unsavable=[{"pid": item.pid, "process": item.process, "path": item.path} for item in found],
            )

    @asynccontextmanager
    async def failing(self) -> AsyncIterator[None]:
        """What goes wrong in the body is a PauseFailed that says whether connections were reset, and whether it still runs."""
        try:
            yield
        except PauseFailed as error:
            error.details["connections_reset"] = self._reset
            raise
        except (SandkeepError, OSError) as error:
            why = str(error)
            hint = "it is as it was" + ("; its outside connections were reset" if self._reset else "")
            if not await _lives(self._runtime, self._machine):
                why = f"its machine {await self._runtime.wait_exit(self._machine)}"
                hint = "the disk is kept; what is done now its rule for failures says: sandkeep why NAME"
            raise PauseFailed(
                f"the save of its memory failed: {why}", hint=hint, connections_reset=self._reset
            ) from error

    async def memory(self, entry: Entry, undos: Undos) -> None:
        """Written, not yet durable; the machine stands still when it returns. What is undone lets it run on."""
        parts, record, generation = self._parts, self._record, self._generation
        entry.step("generation.begin", generation=generation)
        undos.push("generation", lambda: parts.disks.drop_generation(record.id, generation))
        folder = await parts.disks.make_memory_folder(record.id, generation)
        entry.step("network.reset")
        await parts.guest.hang_up(self._attachment.address)
        undos.push("thaw", lambda: self._runtime.thaw(self._machine))
        undos.push("network", lambda: parts.networks.unblock(self._attachment))
        await parts.networks.reset_tcp(self._attachment)
        self._reset = True
        entry.step("memory.probe")
        await _probe(parts, self._runtime, self._attachment, self._machine)
        await anyio.sleep(_DIGEST_WAIT)
        entry.step("memory.save")
        self._stopped_at = parts.clock.monotonic()
        self._image = await self._runtime.save(self._machine, folder)

    async def disk(self, entry: Entry) -> None:
        """Of the same moment."""
        entry.step("disk.snapshot")
        await self._parts.disks.snapshot(self._record.id, self._generation)

    async def run_on(self, entry: Entry) -> None:
        entry.step("machine.thaw")
        await self._runtime.thaw(self._machine)
        await self._parts.networks.unblock(self._attachment)
        self.held = self._parts.clock.monotonic() - self._stopped_at

    async def files(self) -> None:
        """Checksums of what was written, which is then on the disk."""
        folder = self._parts.disks.memory_folder(self._record.id, self._generation)
        async with together() as both:
            both.start_soon(checksum_into, folder, self._image.files, self._checksums)
            both.start_soon(run_sync, sync_files, folder, self._image.files)

    async def durable(self, entry: Entry) -> Generation:
        """After `files` and `disk`."""
        entry.step("disk.sync")
        await self._parts.disks.sync()
        return Generation(self._generation, self._parts.clock.now(), self._checksums, self._image.requires)


async def _lives(runtime: Runtime, machine_id: str) -> bool:
    return any(one.id == machine_id and one.pids for one in await runtime.machines())


async def _probe(parts: Parts, runtime: Runtime, attachment: Attachment, machine_id: str) -> None:
    """Connections that wait for a host which never answers are refused, and probed again."""
    for _ in range(_PROBES):
        try:
            await runtime.prepare_save(machine_id)
        except PauseFailed as error:
            failure = error
            if not error.details.get("connecting"):
                break
            await parts.networks.refuse_connecting(attachment)
        else:
            return
    raise failure


async def verify(folder: Path, generation: Generation) -> None:
    """Raises Internal when a memory file is not what was written: it is then never handed to a runtime."""
    found: dict[str, str] = {}
    try:
        await checksum_into(folder, tuple(generation.files), found)
    except OSError as error:
        raise Internal(
            f"the memory image cannot be read: {error.strerror}", hint="start from the disk: sandkeep start NAME"
        ) from error
    wrong = [name for name, checksum in generation.files.items() if found.get(name) != checksum]
    if wrong:
        raise Internal(
            f"the memory image is damaged ({', '.join(wrong)})", hint="start from the disk: sandkeep start NAME"
        )


async def checksum_into(folder: Path, files: tuple[str, ...], into: dict[str, str]) -> None:
    """A thread that a bad disk holds is left behind when the deadline comes: what was done so far is undone without it."""
    for name in files:
        into[name] = await run_sync(_checksum, folder / name, abandon_on_cancel=True)


def _checksum(path: Path) -> str:
    with open(open_plain(path), "rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256")  # into one buffer: fresh ones for each piece take as long again
        return f"{os.fstat(file.fileno()).st_size}:{digest.hexdigest()}"
