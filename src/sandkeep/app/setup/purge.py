"""`sandkeep purge`: removes an instance and everything it ever made, and restores what setup changed on the host."""

import contextlib
import os
import pwd
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from anyio.to_thread import run_sync

from sandkeep.app import systemd, wiring
from sandkeep.app.server import acting_as, database_of
from sandkeep.app.settings import CONFIG_FOLDER, Settings, config_file
from sandkeep.app.setup import changes
from sandkeep.app.standalone import require_instance, require_root, stop_daemons
from sandkeep.domain.errors import SandkeepError
from sandkeep.drivers.network.host import remove_accept_rule
from sandkeep.drivers.network.netns import NetnsNetworks
from sandkeep.drivers.network.nftables import open_nft
from sandkeep.drivers.network.resolver_keeper import ResolverKeeper, ResolverSettings
from sandkeep.lib import process
from sandkeep.sdk import config

Say = Callable[[str], None]


def what_goes(settings: Settings) -> list[str]:
    """For the question before it. Raises PermissionDenied, NotFound."""
    require_root()
    require_instance(settings)
    tables = ["its tables in the PostgreSQL database"] if settings.database_url else []
    return [
        *tables,
        f"all sandboxes, templates, keys and data of instance {settings.instance} ({settings.data_folder})",
        f"{settings.run_folder}, {settings.log_folder}, {config_file(settings.instance)}",
        "its networks, firewall tables, machines and system user, if no other instance uses it",
    ]


async def purge(settings: Settings, say: Say) -> None:
    """Goes on over what fails, and raises the first failure at the end: repeating it is safe."""
    require_root()
    require_instance(settings)
    problems: list[Exception] = []

    async def step(what: str, work: Callable[[], object]) -> None:
        try:
            result = work()
            if hasattr(result, "__await__"):
                await result
        except (SandkeepError, OSError, process.ProgramError) as error:
            problems.append(error)
            say(f"{what}: {error}")

    async def close_pool() -> None:
        if not await wiring.make_disks(settings).close():
            say("another program holds a copy of the pool's mount: its room comes back when that program ends")

    say("stopping the daemons")
    await step("daemons", lambda: stop_daemons(settings))
    say("ending machines and networks")
    for runtime in wiring.make_runtimes(settings):
        await step("runtime", runtime.open)
        if runtime.capabilities.available:
            for machine in await runtime.machines():
                await step(machine.id, partial(runtime.kill, machine.id))
        await step("runtime", runtime.close)
    networks = NetnsNetworks(wiring.network_settings(settings))
    with contextlib.suppress(SandkeepError):
        for slot, name in (await networks.attached()).items():
            await step(f"network {slot}", partial(networks.detach, f"sbx_{name}" if name else "", slot))
    await step("networks", networks.close)
    await step("resolver", lambda: _stop_resolver(settings))
    await step("firewall", lambda: run_sync(remove_accept_rule, open_nft(), wiring.network_settings(settings)))
    await _erase_tables(settings, say)
    say("removing the pool and all data")
    await step("pool", close_pool)
    known = changes.noted(settings)
    if not problems:
        if systemd.installed(settings.instance):  # last of what a repeated purge finds machines by
            await step("units", lambda: systemd.remove(settings.instance))
        for folder in (settings.data_folder, settings.run_folder, settings.log_folder):
            await step(str(folder), partial(_remove_tree, folder))
        config_file(settings.instance).unlink(missing_ok=True)
        config.forget_instance(settings.instance)
    await step("forwarding", lambda: changes.restore_forwarding(settings))
    if not _other_instances() and known.get("user"):
        await step("user", lambda: process.run(["userdel", known["user"]], timeout=30, check=False))
    if problems:
        raise problems[0]
    say(f"instance {settings.instance} is gone")


async def _erase_tables(settings: Settings, say: Say) -> None:
    """Those in PostgreSQL. A database that is gone for good does not hold up a purge."""
    if not settings.database_url:
        return
    try:
        with acting_as(settings.user):
            database = database_of(settings)
            try:
                await database.erase()
            finally:
                await database.close()
    except (SandkeepError, KeyError) as error:
        say(f"the tables in the database stay: {error}")


async def _stop_resolver(settings: Settings) -> None:
    try:
        account = pwd.getpwnam(settings.user)
    except KeyError:
        return
    await ResolverKeeper(ResolverSettings(wiring.network_settings(settings), account.pw_uid, account.pw_gid)).stop()


def _remove_tree(folder: Path) -> None:
    """Never across a mount: what is still mounted below is somebody's data."""
    if not folder.exists():
        return
    for root, names, _ in os.walk(folder):
        mounted = [name for name in names if os.path.ismount(os.path.join(root, name))]
        if mounted:
            raise OSError(f"{root}/{mounted[0]} is still mounted")
    shutil.rmtree(folder)


def _other_instances() -> bool:
    return any(CONFIG_FOLDER.glob("*.toml"))
