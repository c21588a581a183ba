"""`sandkeep doctor`: what this host can do and what it lacks, each finding with its remedy. Reads only."""

import os
import pwd
import stat
from pathlib import Path

from anyio.to_thread import run_sync

from sandkeep.app import deep, wiring
from sandkeep.app.agents import shipped_agent
from sandkeep.app.daemon import holder
from sandkeep.app.findings import Finding
from sandkeep.app.inspection import apart
from sandkeep.app.server import acting_as, database_of
from sandkeep.app.settings import Settings
from sandkeep.app.setup import packages
from sandkeep.app.standalone import (
    PYTHON_REMEDY,
    SQLITE_REMEDY,
    free_space,
    lacks_sqlite,
    require_root,
    said,
    why_not_ready,
    why_unusable,
)
from sandkeep.domain.errors import SandkeepError
from sandkeep.domain.quantities import GIB, MIB, format_size
from sandkeep.drivers.disk.btrfs.pool import why_no_btrfs
from sandkeep.drivers.network.host import forward_policy_drops, forwarding_enabled, legacy_tables, overlapping_routes
from sandkeep.drivers.network.nftables import NftError, open_nft
from sandkeep.drivers.runtime.runsc import build, control
from sandkeep.engine.admission import still_fits
from sandkeep.engine.records import Records

_LEAST_ROOM = 4 * GIB


async def examine(settings: Settings, deeply: bool = False) -> list[Finding]:
    """All findings; `missing` ones keep sandboxes from running."""
    require_root()
    found: list[Finding] = []
    found += _programs()
    found += await deep.examine(settings) if deeply else await _runsc(settings)
    found += _kernel()
    found += _agent()
    found += await run_sync(_network, settings)
    found += await _room(settings)
    found += await _database(settings)
    found += await _instance(settings)
    return found


def _programs() -> list[Finding]:
    missing = packages.missing_packages()
    if missing:
        return [
            Finding("missing", f"Debian packages are missing: {', '.join(missing)}", "sandkeep setup installs them")
        ]
    return [Finding("ok", "all Debian packages are there")]


async def _runsc(settings: Settings) -> list[Finding]:
    path = await packages.used_runsc(settings.runsc, wiring.RUNSC_PLACES, wiring.approved_builds(settings))
    if path is None:
        return [Finding("missing", "there is no runsc (gVisor)", "sandkeep setup fetches the tested build")]
    version = await build.version(path)
    if version not in control.TESTED and build.digest(path) not in wiring.approved_builds(settings):
        return [
            Finding(
                "warning",
                f"runsc {version} is not on the tested list: no memory persistence, no control socket",
                "sandkeep doctor --deep tests it; or remove it, and setup fetches a tested build",
            )
        ]
    return [Finding("ok", f"gVisor {version}")]


def _kernel() -> list[Finding]:
    release = os.uname().release
    if why_no_btrfs():
        return [
            Finding(
                "warning",
                f"kernel {release}: {why_no_btrfs()}",
                "use a kernel of 6.7 or newer; until then the disk driver `dir` serves, without hard disk limits",
            )
        ]
    return [Finding("ok", f"kernel {release}, btrfs with simple quotas")]


def _agent() -> list[Finding]:
    try:
        return [Finding("ok", f"agent of {format_size(shipped_agent().stat().st_size)}")]
    except SandkeepError as error:
        return [Finding("missing", error.message, error.hint or "")]


def _network(settings: Settings) -> list[Finding]:
    found = []
    ours = wiring.network_settings(settings)
    for route in overlapping_routes(ours):
        if not route.interface.startswith(f"{settings.prefix}v"):
            found.append(
                Finding(
                    "missing",
                    f"{route.network} on {route.interface} overlaps our addresses {route.ours}",
                    "choose others: sandkeep setup --address-range 10.64.0.0/16",
                )
            )
    if not forwarding_enabled():
        found.append(
            Finding("warning", "IPv4 forwarding is off: sandboxes reach no internet", "sandkeep setup turns it on")
        )
    if os.geteuid() == 0:
        try:
            for chain in forward_policy_drops(open_nft(), ours):
                found.append(
                    Finding(
                        "warning",
                        f"{chain.owner} drops forwarded packets ({chain.family} {chain.table} {chain.name})",
                        "sandkeep setup inserts one marked rule there, which purge removes",
                    )
                )
        except (NftError, SandkeepError) as error:
            remedy = getattr(error, "hint", None) or "a kernel with nf_tables is needed"
            found.append(Finding("missing", f"nftables does not work: {error}", remedy))
    if legacy_tables():
        found.append(
            Finding("warning", "iptables-legacy tables are loaded, whose rules we cannot see", "move to iptables-nft")
        )
    return found or [Finding("ok", f"network: {settings.address_range} is free, packets are forwarded")]


async def _room(settings: Settings) -> list[Finding]:
    free = free_space(settings.data_folder)
    if not settings.pool_folder.exists():
        if free < _LEAST_ROOM:
            return [
                Finding(
                    "missing",
                    f"{format_size(free)} free for a pool",
                    f"free {format_size(_LEAST_ROOM)}, or name a device",
                )
            ]
        return [Finding("ok", f"{format_size(free)} free for a pool")]
    if not os.path.ismount(settings.pool_folder):
        return [Finding("ok", "the pool is not mounted (sandkeep up does it)")]
    try:
        parts = wiring.make_parts(settings)
    except SandkeepError:
        return []  # told by what it is about
    parts.records.load()
    parts.slots.open({r.slot for r in parts.records.sandboxes.values() if r.slot})
    capacity = await parts.capacity()
    more = still_fits(capacity, parts.settings.rules, GIB)
    text = (
        f"pool: {format_size(capacity.pool_free)} of {format_size(capacity.pool_total)} free; "
        f"{more} more sandboxes of 1 GiB fit"
    )
    if more == 0:
        return [Finding("warning", text, "delete something, or grow the pool: sandkeep setup --pool-size")]
    if free < 512 * MIB:
        return [Finding("warning", f"{format_size(free)} free beside the pool", "the database and logs need room too")]
    return [Finding("ok", text)]


async def _database(settings: Settings) -> list[Finding]:
    if why := lacks_sqlite(settings):
        return [Finding("missing", why, SQLITE_REMEDY)]
    if not settings.database_url:
        if not settings.database.exists():
            return []  # the server makes it
        if wrong := wrong_file(settings.database, settings.user):
            return [wrong]
    database = None
    try:
        with acting_as(settings.user):
            database = database_of(settings, read_only=True)
            schema = await database.look()
        strangers = await apart(database, settings) if schema else ""
        damage = await database.damage() if schema else None
    except (SandkeepError, KeyError) as error:
        hint = error.hint if isinstance(error, SandkeepError) else None
        return [Finding("missing", f"database: {error}", hint or "sandkeep setup makes its user")]
    finally:
        if database is not None:
            await database.close()
    kind = "PostgreSQL" if settings.database_url else "SQLite"
    if damage:
        return [Finding("missing", f"the database is damaged: {damage}", "sandkeep backup restore FILE")]
    if strangers:
        return [Finding("warning", strangers, "put the right database back; or sandkeep node adopt --plan")]
    return [Finding("ok", f"database: {kind}, " + (f"schema {schema}" if schema else "empty"))]


def wrong_file(database: Path, user: str) -> Finding | None:
    """What the server, as this system user, cannot use as its SQLite file."""
    found = database.stat()
    if not stat.S_ISREG(found.st_mode):
        remedy = f"move it away: mv {database} {database}.away; then sandkeep up, or sandkeep backup restore FILE"
        return Finding("missing", f"database: {database} is not a file", remedy)
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return None  # told where the instance is looked at
    if found.st_uid != account.pw_uid:
        remedy = f"chown {user}: {database}*"
        return Finding("missing", f"database: {database} is not owned by {user}, who serves it", remedy)
    return None


async def _instance(settings: Settings) -> list[Finding]:
    if not (settings.node_folder / "id").exists():
        return [Finding("warning", f"instance {settings.instance} is not set up", "sandkeep setup")]
    found = []
    records = Records(settings.node_folder)
    records.load()
    if not records.templates:
        found.append(Finding("warning", "there is no template", "sandkeep setup builds `base`"))
    try:
        if why := await why_unusable(settings):
            found.append(Finding("missing", why, PYTHON_REMEDY))
    except KeyError:
        found.append(Finding("missing", f"there is no system user {settings.user}", "sandkeep setup makes it"))
    if not holder(settings.run_folder, "runner"):
        return [*found, Finding("warning", f"instance {settings.instance} is down", "sandkeep up")]
    if why := await why_not_ready(settings):
        remedy, _ = await said(settings, "server", "runner")
        return [*found, Finding("missing", f"instance {settings.instance} does not serve: {why}", remedy)]
    return [*found, Finding("ok", f"instance {settings.instance} is up")]
