"""The runner daemon: the engine of one node behind its unix socket, and the keeper of the guests' resolver."""

import contextlib
import grp
import os
import pwd
import socket
from collections.abc import Callable, Iterable

import anyio
from anyio.to_thread import run_sync

from sandkeep import __version__
from sandkeep.app import systemd
from sandkeep.app.agents import install_agent
from sandkeep.app.daemon import listener, note_build, only_one, until_signalled
from sandkeep.app.settings import Settings
from sandkeep.app.setup import changes
from sandkeep.app.wiring import make_parts, network_settings
from sandkeep.contracts.runtime import Runtime
from sandkeep.domain.errors import SandkeepError, Unavailable
from sandkeep.drivers.network.host import insert_accept_rule
from sandkeep.drivers.network.nftables import open_nft
from sandkeep.drivers.network.resolver_keeper import ResolverKeeper, ResolverSettings
from sandkeep.edge.runner.app import runner_app
from sandkeep.engine import writer
from sandkeep.engine.supervisor import Supervisor
from sandkeep.lib import process
from sandkeep.telemetry import log as logs


async def run_runner(settings: Settings) -> None:
    """Until SIGTERM; sandboxes and resolver live on, unless the host itself stops."""
    logs.set_up(settings.log_level)
    settings.run_folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    with only_one(settings.run_folder, "runner"):
        note_build(settings.run_folder)
        process.adopt_orphans()
        writer.mark(settings.node_folder, __version__)
        install_agent(settings.agents_folder)
        # A reboot takes both away, as does a reload of the host's own firewall.
        changes.enable_forwarding(settings, lambda line: logs.log("network.repaired", what=line))
        await run_sync(insert_accept_rule, open_nft(), network_settings(settings))
        parts = make_parts(settings)
        supervisor = Supervisor(parts, __version__)
        listening = _listen(settings)
        server = listener(runner_app(supervisor, __version__))
        async with until_signalled("runner"), anyio.create_task_group() as tasks:
            await tasks.start(_supervise, supervisor)
            tasks.start_soon(_keep_resolver, settings)
            logs.log("daemon.started", daemon="runner", version=__version__)
            await server.serve([listening])
        if await systemd.host_stops(settings.instance):
            await end_paused(parts.runtimes.values())


async def end_paused(runtimes: Iterable[Runtime]) -> None:
    """End the machines that are paused in memory, which goes with the host. They are frozen, and systemd would wait a
    minute and a half for each process to heed its signal before it kills them."""
    for runtime in runtimes:
        if not runtime.capabilities.available:
            continue
        for machine in await runtime.machines():
            if machine.frozen:
                with contextlib.suppress(SandkeepError):  # systemd does it then, later
                    await runtime.kill(machine.id)


async def _supervise(supervisor: Supervisor, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    started: Callable[[], None] = task_status.started
    await supervisor.run(started)


def _listen(settings: Settings) -> socket.socket:
    path = settings.runner_socket
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    finally:
        os.umask(before)
    os.chown(path, 0, grp.getgrnam(settings.user).gr_gid)
    path.chmod(0o660)
    listening.listen(256)
    return listening


async def _keep_resolver(settings: Settings) -> None:
    account = pwd.getpwnam(settings.user)
    keeper = ResolverKeeper(
        ResolverSettings(
            network=network_settings(settings),
            user=account.pw_uid,
            group=account.pw_gid,
            resolv_conf=settings.resolv_conf,
            rate=settings.dns_rate,
            burst=2 * settings.dns_rate,
        )
    )
    while True:
        try:
            await keeper.run()
        except Unavailable as error:
            logs.log("resolver.exited", "warning", error=error.message)
            await anyio.sleep(1)
        except SandkeepError as error:
            logs.log("resolver.exited", "error", error=error.message)
            return
