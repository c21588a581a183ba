"""Which drivers fulfil which contracts, from the settings."""

import base64
import json
import pwd
import re
import time
import tomllib
from functools import partial
from pathlib import Path

import anyio

from sandkeep.app import systemd
from sandkeep.app.agents import current_agent
from sandkeep.app.settings import Settings
from sandkeep.app.units import UnitNames
from sandkeep.contracts.disks import Disks
from sandkeep.contracts.objects import Objects
from sandkeep.domain.errors import Conflict, InvalidArgument
from sandkeep.domain.sandbox import RuntimeKind
from sandkeep.drivers.disk.btrfs.disks import BtrfsDisks
from sandkeep.drivers.disk.btrfs.pool import PoolSettings, why_no_btrfs
from sandkeep.drivers.disk.directory import DirectoryDisks, DirectorySettings
from sandkeep.drivers.guest.agent import AgentGuest
from sandkeep.drivers.network.layout import NetworkSettings
from sandkeep.drivers.network.netns import NetnsNetworks
from sandkeep.drivers.objects.folder import FolderObjects
from sandkeep.drivers.objects.remote import SCHEMES, RemoteObjects
from sandkeep.drivers.runtime.runc.driver import RuncRuntime
from sandkeep.drivers.runtime.runsc.driver import GvisorRuntime
from sandkeep.engine import host
from sandkeep.engine.admission import Rules
from sandkeep.engine.archive.keys import KeyRing
from sandkeep.engine.archive.vault import Vault
from sandkeep.engine.archive.worker import Worker
from sandkeep.engine.deletions import Deletions
from sandkeep.engine.feed import Feed
from sandkeep.engine.journal import Journal
from sandkeep.engine.parts import NodeSettings, Parts
from sandkeep.engine.records import Records
from sandkeep.engine.slots import Slots

RUNSC_PLACES = (Path("/usr/local/bin/runsc"), Path("/usr/bin/runsc"))
RUNC_PLACES = (Path("/usr/sbin/runc"), Path("/usr/bin/runc"), Path("/usr/local/sbin/runc"), Path("/usr/local/bin/runc"))


class SystemClock:
    """Fulfils contracts.clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


def network_settings(settings: Settings) -> NetworkSettings:
    return NetworkSettings(settings.prefix, settings.run_folder, settings.address_range, settings.dns_port)


def pool_settings(settings: Settings) -> PoolSettings:
    return PoolSettings(
        folder=settings.pool_folder,
        image=None if settings.pool_device else settings.pool_image,
        device=settings.pool_device,
        size=settings.pool_size,
        sparse=settings.pool_sparse,
    )


def make_disks(settings: Settings) -> BtrfsDisks | DirectoryDisks:
    wanted = settings.disk_driver
    if wanted == "auto":
        wanted = "dir" if why_no_btrfs() else "btrfs"
    if wanted == "btrfs":
        return BtrfsDisks(pool_settings(settings))
    return DirectoryDisks(DirectorySettings(settings.pool_folder))


def first_existing(configured: Path | None, places: tuple[Path, ...]) -> Path:
    if configured:
        return configured
    return next((place for place in places if place.exists()), places[0])


def cgroup_parent(settings: Settings) -> str:
    """What machines' control groups lie below: systemd's unit for them, or without one a group of ours at the top."""
    if systemd.installed(settings.instance):
        return UnitNames(settings.instance).group
    return f"sandkeep-{settings.instance}"


def make_runtimes(settings: Settings) -> tuple[GvisorRuntime, RuncRuntime]:
    return (
        GvisorRuntime(
            settings.run_folder,
            first_existing(settings.runsc, RUNSC_PLACES),
            cgroup_parent(settings),
            settings.gvisor_platform,
            approved_builds(settings),
            settings.builds_folder,
        ),
        RuncRuntime(settings.run_folder, first_existing(settings.runc, RUNC_PLACES), cgroup_parent(settings)),
    )


def approved_file(settings: Settings) -> Path:
    """SHA-256 sums of gVisor builds on which `sandkeep doctor --deep` has passed."""
    return settings.node_folder / "approved.json"


def approved_builds(settings: Settings) -> frozenset[str]:
    try:
        return frozenset(str(item) for item in json.loads(approved_file(settings).read_bytes()))
    except (OSError, ValueError, TypeError):
        return frozenset()


def make_parts(settings: Settings) -> Parts:
    """The node's parts; nothing is opened yet."""
    clock = SystemClock()
    disks: Disks = make_disks(settings)
    networks = NetnsNetworks(network_settings(settings))
    gvisor, runc = make_runtimes(settings)
    records = Records(settings.node_folder)
    return Parts(
        settings=NodeSettings(
            node_id=node_id(settings),
            prefix=settings.prefix,
            agent_folder=current_agent(settings.agents_folder),
            boot_deadline=settings.boot_deadline,
            ca_bundle=settings.extra_ca.read_text() if settings.extra_ca else "",
            proxy_env=proxy_environment(settings),
            rules=Rules(settings.memory_overcommit, settings.memory_reserve, settings.pool_reserve),
        ),
        clock=clock,
        disks=disks,
        networks=networks,
        runtimes={RuntimeKind.GVISOR: gvisor, RuntimeKind.RUNC: runc},
        guest=AgentGuest(),
        records=records,
        journal=Journal(settings.node_folder / "journal"),
        deletions=Deletions(settings.node_folder / "deleted.log", clock),
        feed=Feed(settings.node_folder / "feed.jsonl", clock),
        slots=Slots(settings.run_folder / "slots.json", networks.slots, clock),
        vault=Vault(make_objects(settings), KeyRing(settings.node_folder / "keys"), Worker(archive_user(settings))),
        host=partial(host.look, settings.node_folder),
    )


def make_objects(settings: Settings) -> Objects:
    """Raises InvalidArgument."""
    url = settings.archive_url
    scheme, separator, _ = url.partition("://")
    if not separator:
        return FolderObjects(Path(url) if url else settings.archive_folder)
    if scheme not in SCHEMES:
        raise InvalidArgument(
            f"archive_url {url} names no store that there is a driver for",
            hint=f"a folder, or {', '.join(f'{one}://' for one in SCHEMES)}",
            field="archive_url",
        )
    options: dict[str, str] = {}
    if settings.archive_options:
        try:
            found = tomllib.loads(settings.archive_options.read_text())
        except (OSError, ValueError) as error:
            raise InvalidArgument(
                f"archive_options {settings.archive_options} cannot be read", hint="a TOML file, root's alone"
            ) from error
        options = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in found.items()}
    return RemoteObjects(url, options)


def archive_user(settings: Settings) -> tuple[int, int]:
    """Whom the program that packs and unpacks becomes: never root."""
    try:
        account = pwd.getpwnam(settings.user)
    except KeyError:  # before setup has made it
        return 65534, 65534
    return account.pw_uid, account.pw_gid


def node_id(settings: Settings) -> str:
    """Made by setup, kept with the node's records."""
    try:
        found = (settings.node_folder / "id").read_text().strip()
    except FileNotFoundError:
        return f"{settings.instance}-unknown"
    except (OSError, UnicodeDecodeError) as error:
        found = str(error)
    if not re.fullmatch(r"[a-z0-9-]{1,64}", found):
        raise Conflict(
            f"{settings.node_folder / 'id'} does not hold the node's id: {found[:80]!r}",
            hint="write back what it was (`sandkeep node show` says it); removed, sandkeep setup makes this a new node",
        )
    return found


def new_node_id() -> str:
    import secrets

    return "node-" + base64.b32encode(secrets.token_bytes(10)).decode().lower().rstrip("=")


def proxy_environment(settings: Settings) -> dict[str, str]:
    if not settings.http_proxy:
        return {}
    names = {"http_proxy": settings.http_proxy, "https_proxy": settings.http_proxy, "no_proxy": settings.no_proxy}
    return {**names, **{key.upper(): value for key, value in names.items()}}
