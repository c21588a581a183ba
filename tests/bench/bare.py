"""Machines without the platform: the very same OCI configuration, flags and kind of disk and network as the drivers',
but plain processes of the runtimes' own command lines, as somebody with a terminal would run them.

What the goals do not count as bare (network, bundle, control group of a create) is made before the clock runs.
"""

import asyncio
import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, TypeVar

from sandkeep.contracts.guest import ExecRequest, GuestInit
from sandkeep.contracts.network import Attachment
from sandkeep.contracts.runtime import MachinePlan
from sandkeep.domain.ids import IdKind, body, new_id
from sandkeep.domain.node import Endpoint
from sandkeep.domain.quantities import MIB
from sandkeep.domain.sandbox import Limits, NetworkMode
from sandkeep.drivers.disk.btrfs import ioctl
from sandkeep.drivers.guest.agent import AgentGuest
from sandkeep.drivers.network.layout import NetworkSettings
from sandkeep.drivers.network.netns import NetnsNetworks
from sandkeep.drivers.runtime._oci.cgroup import Group, Groups
from sandkeep.drivers.runtime._oci.config import config
from sandkeep.drivers.runtime._oci.layout import detect
from sandkeep.drivers.runtime._oci.limits import for_gvisor, for_native
from sandkeep.drivers.runtime._oci.machines import ENTER
from sandkeep.drivers.runtime.runc import state as runc_state
from sandkeep.drivers.runtime.runsc import build, command, control
from sandkeep.drivers.runtime.runsc import state as runsc_state
from support.instance import Instance
from support.machines import program

T = TypeVar("T")

_PORT = 49983
_PR_SET_CHILD_SUBREAPER = 36
_DIGEST_WAIT = 0.03
"""The quiesce protocol's: programs inside meet the resets of their connections."""
_STARTING_PIDS = 64
_TOKEN = "bench-bench-bench-bench"


class Bare:
    """Where the bare machines of one runtime live: beside the instance's own, on the same pool, from its template."""

    def __init__(self, instance: Instance, runtime: str, loop: asyncio.Runner, memory: int = 256 * MIB) -> None:
        data = instance.root / "data"
        self.gvisor = runtime == "gvisor"
        self.binary = program("runsc" if self.gvisor else "runc")
        self.run = loop.run
        self.limits = Limits(memory=memory)
        self.disks = data / "pool" / "bench"
        self.template = next((data / "pool/templates").iterdir())
        self.agent = next(path for path in (data / "agents").iterdir() if path.is_dir())
        self.folder = Path(tempfile.mkdtemp(prefix="sandkeep-bench-", dir="/run"))
        self.networks = NetnsNetworks(
            NetworkSettings("bn" if self.gvisor else "bm", self.folder, IPv4Network("10.209.0.0/22"), 5399)
        )
        self.groups = Groups(detect(Path("/proc/self/mountinfo").read_text()), f"sandkeep-bench/{runtime}")
        self.guest = AgentGuest()
        self.platform = build.choose_platform(build.AUTO, Path("/proc/cpuinfo").read_text())
        self._machines: list[Machine] = []
        self._slot = 0

    def __enter__(self) -> "Bare":
        # What a runtime's command leaves behind is our child then, and reaped at once, not when init finds the time.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for folder in (self.state, self.disks):
            folder.mkdir(exist_ok=True)
        self.groups.open()
        self.run(self.networks.open())
        return self

    def __exit__(self, *_: object) -> None:
        for machine in list(self._machines):
            machine.remove()
        self.run(self.networks.close())
        self.groups.close()
        shutil.rmtree(self.disks)
        shutil.rmtree(self.folder)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def machine(self) -> "Machine":
        """One that has all but its disk and its processes."""
        self._slot += 1
        sandbox_id = new_id(IdKind.SANDBOX)
        network = self.run(self.networks.attach(sandbox_id, self._slot, NetworkMode.INTERNET))
        plan = MachinePlan(
            id=f"bn-{body(sandbox_id)}",
            sandbox_id=sandbox_id,
            hostname="bench",
            root=self.disks / body(sandbox_id),
            agent=self.agent,
            agent_port=_PORT,
            network=network,
            limits=self.limits,
        )
        made = Machine(self, plan, self.groups.machine(plan.id))
        made.prepare()
        self._machines.append(made)
        return made

    def forget(self, machine: "Machine") -> None:
        self._machines.remove(machine)


@dataclass
class Machine:
    bare: Bare
    plan: MachinePlan
    group: Group
    kept: list[Path] = field(default_factory=list)

    # -- before the clock runs

    def prepare(self) -> None:
        nofile = build.open_files_limit()
        cgroup = None if self.bare.gvisor else self.group.path
        oci = config(self.plan, gvisor=self.bare.gvisor, nofile=nofile, cgroup=cgroup)
        self.bundle.mkdir(parents=True)
        (self.bundle / "config.json").write_text(json.dumps(oci))
        (self.bundle / "meminfo").write_text(command.meminfo(self.plan.limits.memory))
        (self.bundle / "fstab").write_text(command.fstab(self.bundle / "meminfo", self.plan.agent))
        self.make_group()

    def make_group(self) -> None:
        if self.bare.gvisor:
            self.group.create(for_gvisor(self.plan.limits))
        else:
            limits = for_native(self.plan.limits)
            self.group.create(replace(limits, pids=limits.pids + _STARTING_PIDS))

    @cached_property
    def bundle(self) -> Path:
        return self.bare.folder / self.plan.id

    @property
    def memory(self) -> Path:
        return self.plan.root.with_name(self.plan.root.name + "-memory")

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("tcp", self.plan.network.address, _PORT, _TOKEN)

    # -- the primitives

    def clone(self, source: Path | None = None) -> None:
        """Its disk, from the template or another machine's."""
        ioctl.snapshot(source or self.bare.template, self.bare.disks, self.plan.root.name, group=None, readonly=False)

    def start(self) -> None:
        """`run --detach`."""
        if self.bare.gvisor:
            self._enter(*self._flags(), *command.run(self.plan.id, self.bundle))
        else:
            self._enter(f"--root={self.bare.state}", "run", "--detach", f"--bundle={self.bundle}", self.plan.id)

    def exec(self, *argv: str) -> None:
        self._command("exec", self.plan.id, *argv)

    def pause(self) -> None:
        self._command("pause", self.plan.id)

    def resume(self) -> None:
        self._command("resume", self.plan.id)

    def delete(self) -> None:
        """`delete --force`: kills and forgets."""
        dying = [threading.Thread(target=_reap, args=(pid,)) for pid in self._leaders()]
        for thread in dying:
            thread.start()
        self._command("delete", "--force", self.plan.id)
        for thread in dying:
            thread.join()

    def keep(self) -> Path:
        """A read-only snapshot of its disk that survives a power cut."""
        name = f"{self.plan.root.name}-kept-{len(self.kept)}"
        ioctl.snapshot(self.plan.root, self.bare.disks, name, group=None, readonly=True)
        self.kept.append(self.bare.disks / name)
        ioctl.sync(self.bare.disks)
        return self.kept[-1]

    def drop_kept(self) -> None:
        for kept in self.kept:
            _destroy(kept)
        self.kept.clear()

    @staticmethod
    def difference(before: Path, after: Path) -> None:
        """What differs between two of those, as the file system's own program writes it, unread."""
        asked = ["btrfs", "send", "--quiet", "--no-data", "-p", str(before), "-f", "/dev/null", str(after)]
        subprocess.run(asked, check=True, capture_output=True)

    def destroy_disk(self) -> None:
        _destroy(self.plan.root)

    # -- pause to disk and back, gVisor only

    def hibernate(self) -> dict[str, str]:
        """Quiesce, checkpoint, fsync, checksum, snapshot, kill. Returns the checksums."""
        self._await(self._quiesce())
        self.memory.mkdir()
        checkpoint = ("checkpoint", "--leave-running", "--compression=none", f"--image-path={self.memory}")
        self._command(*checkpoint, self.plan.id)
        sums = {}
        for name in control.IMAGE_FILES:
            fd = os.open(self.memory / name, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            sums[name] = _checksum(self.memory / name)
        disk = self.plan.root
        ioctl.snapshot(disk, disk.parent, f"{disk.name}-saved", group=None, readonly=True)
        self.end()
        return sums

    async def _quiesce(self) -> None:
        socket, guest, networks = self._socket(), self.bare.guest, self.bare.networks
        await guest.quiesce(self.endpoint, 5)
        await guest.hang_up(self.endpoint.address)
        await networks.reset_tcp(self.plan.network)
        await control.checkpoint(socket, None, timeout=60)
        await asyncio.sleep(_DIGEST_WAIT)

    def renew(self) -> None:
        """A fresh network and runtime state for what comes back. Before the clock runs."""
        runsc_state.forget(self.bare.state, self.plan.id)
        self.group.remove()
        network: Attachment = self.plan.network
        self._await(self.bare.networks.detach(network.sandbox_id, network.slot))
        self._await(self.bare.networks.attach(network.sandbox_id, network.slot, network.mode))

    def restore(self, sums: dict[str, str]) -> None:
        """Checksum, group, `restore`, first exec by agent."""
        assert {name: _checksum(self.memory / name) for name in sums} == sums
        self.make_group()
        self._enter(*self._flags(), *command.restore(self.plan.id, self.bundle, self.memory))
        self.ask("true")

    def drop_saved(self) -> None:
        shutil.rmtree(self.memory, ignore_errors=True)
        _destroy(self.plan.root.with_name(f"{self.plan.root.name}-saved"))

    # -- a moment of it is kept and it runs on, and others go on from there; gVisor only

    def save(self, name: str = "memory") -> Path:
        """Quiesce, checkpoint, fsync, snapshot of the disk. The folder of the image."""
        image = self.plan.root.with_name(f"{self.plan.root.name}-{name}")
        image.mkdir()
        self._await(self._quiesce())
        self._command("checkpoint", "--leave-running", "--compression=none", f"--image-path={image}", self.plan.id)
        self._await(self.bare.networks.unblock(self.plan.network))
        self.keep()
        return image

    def go_on_from(self, image: Path) -> None:
        """`restore` from what another, or itself at another moment, was saved as; its network and group are fresh."""
        self._enter(*self._flags(), *command.restore(self.plan.id, self.bundle, image))

    # -- by the agent

    def introduce(self) -> None:
        self._await(self.bare.guest.wait_ready(self.endpoint, 30))
        values = GuestInit(self.plan.sandbox_id, "bench", {}, 0.0, (), self.plan.limits.memory, self.bare.gvisor)
        self._await(self.bare.guest.init(self.endpoint, replace(values, timestamp=time.time())))

    def ask(self, *argv: str) -> str:
        return self._await(self.answer(*argv))

    async def answer(self, *argv: str) -> str:
        """What it printed."""
        await self.bare.guest.wait_ready(self.endpoint, 30)
        done = await self.bare.guest.exec(self.endpoint, ExecRequest(argv))
        assert done.exit_code == 0, done
        return done.stdout.decode()

    # -- the end

    def end(self) -> None:
        """SIGKILL to all of it, and wait until it is gone."""
        while self.group.signal_all():
            _reap(-1)

    def remove(self) -> None:
        network = self.plan.network
        self._await(self.bare.guest.hang_up(network.address))
        self.end()
        self.group.remove()
        (runsc_state if self.bare.gvisor else runc_state).forget(self.bare.state, self.plan.id)
        self._await(self.bare.networks.detach(network.sandbox_id, network.slot))
        self.destroy_disk()
        self.drop_kept()
        self.drop_saved()
        shutil.rmtree(self.bundle)
        self.bare.forget(self)

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return self.bare.run(work)

    def _flags(self) -> list[str]:
        return command.global_flags(self.bare.state, self.bare.platform, self.bundle / "panic")

    def _enter(self, *arguments: str) -> None:
        """Run the runtime inside the machine's group, as its driver does."""
        entrances = self.group.entrances()
        if self.bare.gvisor:
            prefix = command.launcher(self.bundle / "fstab", entrances, [])
        else:
            prefix = ["/bin/sh", "-c", ENTER, "sh", *entrances, "--"]
        self._call([*prefix, str(self.bare.binary), *arguments])

    def _command(self, *arguments: str) -> None:
        self._call([str(self.bare.binary), f"--root={self.bare.state}", *arguments])

    def _call(self, argv: list[str]) -> None:
        # no pipe (a detached machine would keep it open), no timeout (subprocess then polls)
        with open(self.bundle / "log", "ab") as log:
            code = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log).wait()
        assert code == 0, (argv, code, (self.bundle / "log").read_text()[-2000:])

    def _socket(self) -> str:
        found = runsc_state.load(self.bare.state, self.plan.id)
        assert found
        return found.socket

    def _leaders(self) -> tuple[int, ...]:
        if self.bare.gvisor:
            found = runsc_state.load(self.bare.state, self.plan.id)
            return (found.sentry, found.gofer) if found else ()
        pid = runc_state.init_pid(self.bare.state, self.plan.id)
        return (pid,) if pid else ()


def _destroy(subvolume: Path) -> None:
    if subvolume.exists():
        ioctl.destroy_subvolume(subvolume.parent, ioctl.subvolume_id(subvolume))


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reap(pid: int) -> None:
    """Wait for a child that is ending; of -1, all that have ended."""
    try:
        while os.waitpid(pid, os.WNOHANG if pid == -1 else 0)[0] and pid == -1:
            pass
    except ChildProcessError:
        pass
