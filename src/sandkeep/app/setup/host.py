"""`sandkeep setup`: everything that an instance needs on a host, each step only when it is missing. Quick when repeated."""

import os
import pwd
import time
import tomllib
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import tomli_w
from anyio.to_thread import run_sync

from sandkeep import __version__
from sandkeep.app import settings as settings_module
from sandkeep.app import wiring
from sandkeep.app.agents import install_agent
from sandkeep.app.daemon import holder
from sandkeep.app.settings import Settings, config_file
from sandkeep.app.setup import changes, packages
from sandkeep.app.standalone import (
    PYTHON_REMEDY,
    prepare_folders,
    require_root,
    require_sqlite,
    stop_daemons,
    up,
    why_unusable,
)
from sandkeep.domain.errors import Conflict, InvalidArgument, Unavailable, Unsupported
from sandkeep.domain.ids import IdKind, new_id
from sandkeep.domain.node import TemplateOnNode
from sandkeep.domain.quantities import format_size
from sandkeep.drivers.disk.btrfs.disks import BtrfsDisks
from sandkeep.drivers.disk.btrfs.pool import SMALLEST, Pool, default_size
from sandkeep.drivers.images.debian import DebianBuilder
from sandkeep.drivers.images.root import check_root
from sandkeep.drivers.network.host import OverlappingRoute, insert_accept_rule, overlapping_routes
from sandkeep.drivers.network.nftables import open_nft
from sandkeep.engine import writer
from sandkeep.engine.records import Records
from sandkeep.lib import process
from sandkeep.lib.files import write_durably

Say = Callable[[str], None]

_OURS = IPv4Network("10.192.0.0/10")


async def setup(settings: Settings, say: Say, *, templates: tuple[str, ...] = ("base",), asked: dict[str, Any]) -> None:
    """`asked`: settings given as flags, kept in the instance's file once they turned out to be possible. Raises what a
    step raises, with a hint."""
    require_root()
    writer.refuse_newer(settings.node_folder, __version__)
    require_sqlite(settings)
    await packages.install_packages(say)
    runsc = await _runsc(settings, say)
    settings = settings.model_copy(update={"runsc": runsc})
    _claim(settings)
    await _make_user(settings, say)
    if why := await why_unusable(settings):
        raise Unsupported(why, hint=PYTHON_REMEDY)
    prepare_folders(settings)
    _identify(settings)
    install_agent(settings.agents_folder)
    settings = _with_free_addresses(settings, asked, say)
    changes.enable_forwarding(settings, say)
    inserted = await run_sync(insert_accept_rule, open_nft(), wiring.network_settings(settings))
    for chain in inserted:
        say(f"let our packets pass {chain.owner}'s chain {chain.name} (purge takes the rule back)")
    await _make_pool(settings, say)
    settings = _write_settings(settings, {**asked, "runsc": str(runsc)}, say)
    _show_settings_to_the_server(settings)
    made = [recipe for recipe in templates if await make_template(settings, recipe, say)]
    say(f"instance {settings.instance} is set up in {settings.data_folder}")
    if made and holder(settings.run_folder, "runner"):
        say("restarting the daemons, which look for templates at their start (sandboxes go on)")
        await stop_daemons(settings)
        await up(settings, say)


async def _runsc(settings: Settings, say: Say) -> Path:
    """Raises Unavailable when there is no build at all and none can be had."""
    found, tested = await packages.find_runsc(settings.runsc, wiring.RUNSC_PLACES, wiring.approved_builds(settings))
    if found and tested:
        return found
    try:
        return await packages.fetch_runsc(say)
    except Unavailable as error:
        if found is None:
            raise
        say(
            f"{error.message}; using {found}, which is not tested: without memory persistence until sandkeep doctor --deep"
        )
        return found


def _claim(settings: Settings) -> None:
    """The instance's file, with no more than where its folders are: from here on it counts as one, and purge finds it."""
    path = config_file(settings.instance)
    if not path.exists():
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_durably(path, tomli_w.dumps(_own_folders(settings)).encode(), 0o600)


def _own_folders(settings: Settings) -> dict[str, str]:
    defaults = settings_module.derive(settings.instance)
    folders = {key: str(getattr(settings, key)) for key in ("data_folder", "run_folder", "log_folder")}
    return {key: folder for key, folder in folders.items() if folder != defaults[key]}


def _write_settings(settings: Settings, asked: dict[str, Any], say: Say) -> Settings:
    """What was asked, and what was found, into the instance's file, so that it stays as it is."""
    path = config_file(settings.instance)
    defaults = settings_module.derive(settings.instance)
    current = settings.model_dump(mode="json", exclude_none=True)
    kept = {key: current[key] for key in ("port", "dns_port", "prefix", "address_range")}
    kept |= _own_folders(settings)
    kept |= {key: current[key] for key in settings.model_fields_set - set(defaults) if key in current}
    kept |= {key: value for key, value in asked.items() if value is not None}
    text = tomli_w.dumps({key: kept[key] for key in sorted(kept)})
    if not path.exists() or path.read_text() != text:
        write_durably(path, text.encode(), 0o600)
        say(f"wrote {path}")
    return settings_module.load(settings.instance)


async def _make_user(settings: Settings, say: Say) -> None:
    try:
        pwd.getpwnam(settings.user)
    except KeyError:
        say(f"making the system user {settings.user}")
        await process.run(
            ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", settings.user],
            timeout=30,
        )
        changes.note(settings, "user", settings.user)


def _show_settings_to_the_server(settings: Settings) -> None:
    """The URL of a database or a proxy may have a password in it: the file is for root and the server alone."""
    path = config_file(settings.instance)
    os.chown(path, 0, pwd.getpwnam(settings.user).pw_gid)
    path.chmod(0o640)


def _identify(settings: Settings) -> None:
    path = settings.node_folder / "id"
    if not path.exists():
        write_durably(path, wiring.new_node_id().encode(), 0o600)


def _with_free_addresses(settings: Settings, asked: dict[str, Any], say: Say) -> Settings:
    """Another range, where the instance has the one that follows from its name, and the host uses that otherwise. Raises Conflict
    when the host's routes overlap the range that was chosen, or all."""
    taken = _overlaps(settings)
    if not taken:
        return settings
    if asked.get("address_range") or not _may_move(settings):
        raise _overlapping(taken[0])
    for following in ranges_after(settings.address_range):
        moved = settings.model_copy(update={"address_range": following})
        if not _overlaps(moved):
            say(f"the host uses {taken[0].network} ({taken[0].interface}): our addresses are {following}")
            return moved
    raise _overlapping(taken[0])


def ranges_after(first: IPv4Network) -> Iterator[IPv4Network]:
    """Those of its size within 10.192.0.0/10, from it on and around."""
    every = list(_OURS.subnets(new_prefix=first.prefixlen))
    at = next(place for place, network in enumerate(every) if network == first)
    yield from every[at + 1 :] + every[:at]


def _may_move(settings: Settings) -> bool:
    """Nobody chose its range, and no sandbox has an address of it."""
    path = config_file(settings.instance)
    written = tomllib.loads(path.read_text()) if path.exists() else {}
    derived = IPv4Network(settings_module.derive(settings.instance)["address_range"])
    return settings.address_range == derived and "address_range" not in written


def _overlaps(settings: Settings) -> list[OverlappingRoute]:
    found = overlapping_routes(wiring.network_settings(settings))
    return [route for route in found if not route.interface.startswith(f"{settings.prefix}v")]


def _overlapping(route: OverlappingRoute) -> Conflict:
    return Conflict(
        f"the host reaches {route.network} through {route.interface}, which overlaps our {route.ours}",
        hint="choose other addresses: sandkeep setup --address-range 10.64.0.0/16",
    )


def _check_pool_size(settings: Settings) -> None:
    """Raises InvalidArgument for a pool that would be too small, or smaller than it is."""
    asked, image = settings.pool_size, settings.pool_image
    if asked is None or settings.pool_device:
        return
    if asked < SMALLEST:
        raise InvalidArgument(
            f"{format_size(asked)} are too little for a pool", hint=f"--pool-size: {format_size(SMALLEST)} at least"
        )
    if image.exists() and asked < (has := image.stat().st_size):
        raise InvalidArgument(
            f"the pool has {format_size(has)} and cannot shrink to {format_size(asked)}",
            hint=f"leave --pool-size out, or name one above {format_size(has)}; nothing was changed",
        )


async def _make_pool(settings: Settings, say: Say) -> None:
    disks = wiring.make_disks(settings)
    _check_pool_size(settings)
    fresh = isinstance(disks, BtrfsDisks) and not settings.pool_device and not settings.pool_image.exists()
    if fresh:
        size = settings.pool_size or default_size(settings.data_folder)
        takes = "which it takes as it fills" if settings.pool_sparse else "which it takes at once"
        say(f"making the pool {settings.pool_image} of {format_size(size)}, {takes} (another size: setup --pool-size)")
    await disks.open()
    if isinstance(disks, BtrfsDisks) and settings.pool_size and not fresh:
        await Pool(wiring.pool_settings(settings)).grow(settings.pool_size)


async def make_template(settings: Settings, recipe: str, say: Say) -> bool:
    """Build a template of ours into the pool, unless it is there. Safe beside a running runner, which sees it at its next
    start. True: it was built."""
    records = Records(settings.node_folder)
    records.load()
    if any(template.name == recipe for template in records.templates.values()):
        return False
    if holder(settings.run_folder, "runner"):
        say(f"the runner is up; building {recipe} beside it")
    disks = wiring.make_disks(settings)
    await disks.open()
    template_id, begun = new_id(IdKind.TEMPLATE), time.monotonic()
    say(f"building the template {recipe} from Debian packages")
    try:
        folder = await disks.begin_template(template_id)
        await DebianBuilder().build(recipe, folder, lambda line: say(f"  {line}") if _wants_detail() else None)
        check_root(folder)
        size = await disks.finish_template(template_id)
    except BaseException:
        await disks.delete_template(template_id)
        raise
    records.save_template(TemplateOnNode(template_id, recipe, time.time(), size))
    say(f"template {recipe} is ready ({size >> 20} MiB, {time.monotonic() - begun:.0f} s)")
    return True


def _wants_detail() -> bool:
    return bool(os.environ.get("SANDKEEP_VERBOSE"))
