"""`sandkeep up` and `down`: the daemons of one instance on this machine."""

import contextlib
import importlib
import os
import pwd
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import httpx2

from sandkeep import __version__
from sandkeep.app import systemd
from sandkeep.app.daemon import RUNNER_CAPABILITIES, holder, installation_stamp, stamp_file
from sandkeep.app.server import acting_as
from sandkeep.app.settings import CONFIG_FOLDER, Settings, config_file, handed_down
from sandkeep.app.units import UnitNames
from sandkeep.control import keys
from sandkeep.domain.errors import Conflict, NotFound, PermissionDenied, Unavailable, Unsupported
from sandkeep.engine import writer
from sandkeep.lib import process
from sandkeep.lib.files import write_durably
from sandkeep.sdk import config
from sandkeep.sdk.errors import ConfigError

Say = Callable[[str], None]
_READY_WITHIN = 60.0
_LOOK_EVERY = 0.5
_TOO_OFTEN = 3
"""Ends of one daemon during the wait for it: it will not become ready."""
_LOG_END = 800
"""Characters of a daemon's log that are shown."""

PYTHON_REMEDY = "install into a venv made by a Python that all may read, like Debian's python3"
SQLITE_REMEDY = "install with a Python that has it, like Debian's python3, or name a PostgreSQL in database_url"


def require_root() -> None:
    if os.geteuid() != 0:
        raise PermissionDenied("this needs root", hint="run it with sudo")


def require_sqlite(settings: Settings) -> None:
    """Raises Unsupported under a Python that was built without it, where the server would end again and again."""
    if why := lacks_sqlite(settings):
        raise Unsupported(why, hint=SQLITE_REMEDY)


def lacks_sqlite(settings: Settings) -> str | None:
    if settings.database_url:
        return None
    try:
        importlib.import_module("sqlite3")
    except ImportError as error:
        return f"{sys.executable} has no SQLite ({error})"
    return None


async def why_unusable(settings: Settings) -> str | None:
    """Why the server's user cannot run this installation, such as a venv whose Python lies in somebody's home."""
    account = pwd.getpwnam(settings.user)
    who = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    database = "" if settings.database_url else "import sqlite3; "
    program = [sys.executable, "-c", f"{database}import sandkeep.app.server"]
    done = await process.run([*who, *program], timeout=60, check=False, cwd="/")
    if done.code == 0:
        return None
    last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
    return f"the user {settings.user} cannot run {sys.executable}: {last}"


def prepare_folders(settings: Settings) -> None:
    """What the daemons need to find; the run folder is gone after every reboot."""
    account = pwd.getpwnam(settings.user)
    for folder, mode, owner in (
        (settings.data_folder, 0o711, 0),
        (settings.node_folder, 0o700, 0),
        (settings.database.parent, 0o700, account.pw_uid),
        (settings.run_folder, 0o711, 0),
        (settings.run_folder / "server", 0o700, account.pw_uid),
        (settings.run_folder / "server" / "grants", 0o700, account.pw_uid),
        (settings.log_folder, 0o700, 0),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, owner, account.pw_gid if owner else 0)
        folder.chmod(mode)


async def up(settings: Settings, say: Say) -> None:
    """Start what does not run, wait until it answers, and write address and key into the caller's configuration."""
    require_root()
    if not (settings.node_folder / "id").exists():
        raise Conflict(
            f"instance {settings.instance} was not set up", hint=f"sandkeep setup --instance {settings.instance}"
        )
    writer.refuse_newer(settings.node_folder, __version__)
    require_sqlite(settings)
    prepare_folders(settings)
    noted, stamp = stamp_file(settings.run_folder), installation_stamp()
    if holder(settings.run_folder, "runner") and (not noted.exists() or noted.read_text() != stamp):
        say("another build was installed: restarting the daemons (sandboxes go on)")
        await stop_daemons(settings)
    write_durably(noted, stamp.encode())
    if systemd.is_pid_1():
        await systemd.start(settings)
    else:
        _start_keeper(settings)
    await wait_ready(settings)
    if not await _saved_key_works(settings):
        with acting_as(settings.user):
            secret = keys.grant(settings.run_folder / "server" / "grants", "made by sandkeep up")
        if not await _key_works(settings, secret):
            raise Unavailable("the server did not take the new key", hint=(await said(settings, "server"))[0])
        config.save_instance(settings.instance, settings.url, secret)
        say("wrote address and key into the CLI's configuration")
    say(f"sandkeep is up: {settings.url}")


def _start_keeper(settings: Settings) -> None:
    if holder(settings.run_folder, "keeper"):
        return
    folders = [str(settings.run_folder), str(settings.log_folder)]
    arguments = [settings.instance, *folders, sys.executable, str(settings.watchdog)]
    keeper = Path(__file__).with_name("keeper.py")
    log = os.open(settings.log_folder / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process.spawn(
            [*_capabilities(), sys.executable, "-S", str(keeper), *arguments],
            stdout=log,
            stderr=log,
            env={**process.clean_environment(), **handed_down()},
            cwd="/",
            new_session=True,
            may_gain=True,  # what the runner may do, and sudo in runc machines
        )
    finally:
        os.close(log)


def _capabilities() -> list[str]:
    """Prefix of a command that leaves it the runner's capabilities."""
    return ["setpriv", "--inh-caps=-all", "--bounding-set=-all" + "".join(f",+{name}" for name in RUNNER_CAPABILITIES)]


async def why_not_ready(settings: Settings) -> str:
    """What the server says of it; empty when it serves."""
    async with _server(settings) as http:
        return await _reason(http)


def _server(settings: Settings) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=settings.url, timeout=2.0, trust_env=False)


async def _reason(http: httpx2.AsyncClient) -> str:
    try:
        answer = await http.get("/readyz")
        return "" if answer.status_code == 200 else str(answer.json().get("reason", "")) or "it does not say why"
    except (httpx2.HTTPError, ValueError):
        return "no answer"


async def wait_ready(settings: Settings) -> None:
    """Raises Unavailable with the end of the logs; at once when a daemon ends again and again."""
    last = ""
    before, looked = await _ends(settings), time.monotonic()
    async with _server(settings) as http:
        with anyio.move_on_after(_READY_WITHIN):
            while last := await _reason(http):
                if time.monotonic() - looked > _LOOK_EVERY:
                    looked = time.monotonic()
                    for name, count in (await _ends(settings)).items():
                        if count - before[name] >= _TOO_OFTEN:
                            place, end = await said(settings, name)
                            raise Unavailable(
                                f"the {name} ends again and again: {(end.splitlines() or ['it says nothing'])[-1]}",
                                hint=f"{place}\n{end}",
                            )
                await anyio.sleep(0.05)
            return
    raise Unavailable(
        f"the daemons did not become ready within {_READY_WITHIN:g} s ({last})",
        hint="\n".join(await said(settings, "runner", "server", "keeper")),
    )


async def _ends(settings: Settings) -> dict[str, int]:
    """How often each daemon has ended and was started again, as its parent counts them."""
    if systemd.installed(settings.instance):
        names = UnitNames(settings.instance)
        return {"runner": await systemd.restarts(names.runner), "server": await systemd.restarts(names.server)}
    counts = {}
    for name in ("runner", "server"):
        path = settings.run_folder / f"{name}.ends"
        text = path.read_text().strip() if path.exists() else ""
        counts[name] = int(text) if text.isdigit() else 0
    return counts


async def said(settings: Settings, *daemons: str) -> tuple[str, str]:
    """Where what the daemons say is to be read, and the end of it."""
    if systemd.installed(settings.instance):
        names = UnitNames(settings.instance)
        which = [unit for name, unit in (("runner", names.runner), ("server", names.server)) if name in daemons]
        end = "\n".join([(await systemd.said_last(unit))[-_LOG_END:].strip() for unit in which])
        return f"look at journalctl {' '.join(f'-u {unit}' for unit in which)}", end
    files = [settings.log_folder / f"{name}.log" for name in daemons]
    return f"look at {' and '.join(map(str, files))}", "\n".join(filter(None, map(_log_end, files)))


def _log_end(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")[-_LOG_END:].strip()
    return ""


async def _saved_key_works(settings: Settings) -> bool:
    try:
        saved = config.resolve(instance=settings.instance)
    except ConfigError:
        return False
    return saved.url == settings.url and await _key_works(settings, saved.key)


async def _key_works(settings: Settings, secret: str) -> bool:
    """False only when the server says that it is none. Raises Unavailable when it says something else."""
    async with httpx2.AsyncClient(base_url=settings.url, timeout=5.0, trust_env=False) as http:
        answer = await http.get("/v1/version", headers={"authorization": f"Bearer {secret}"})
    if answer.status_code not in (200, 401):
        raise Unavailable(
            f"the server answers {answer.status_code} to the key: {answer.text[:300]}",
            hint=(await said(settings, "server"))[0],
        )
    return answer.status_code == 200


async def stop_daemons(settings: Settings) -> bool:
    """False when none ran."""
    ran = False
    if systemd.installed(settings.instance):
        ran = any(_pids(settings))
        await systemd.stop(settings.instance)
    for pid in _pids(settings):
        if pid is None:
            continue
        ran = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if not await process.wait_gone([pid], 15):
            await process.kill([pid])
    return ran


def _pids(settings: Settings) -> Iterator[int | None]:
    """Of the daemons, each looked up when it is its turn: the keeper, who would start the others again, comes first."""
    yield holder(settings.run_folder, "keeper")
    yield holder(settings.run_folder / "server", "server")
    yield holder(settings.run_folder, "runner")


def require_instance(settings: Settings) -> None:
    """Raises NotFound for an instance of which nothing was ever made here, or all was purged."""
    places = (config_file(settings.instance), settings.data_folder, settings.run_folder, settings.log_folder)
    if not any(place.exists() for place in places):
        known = sorted(path.stem for path in CONFIG_FOLDER.glob("*.toml"))
        raise NotFound(
            f"there is no instance {settings.instance} on this host",
            hint=f"there is {', '.join(known)}" if known else "sandkeep setup makes one",
        )


async def down(settings: Settings, say: Say) -> None:
    """Stop the daemons; sandboxes, resolver and data stay. Raises NotFound."""
    require_root()
    require_instance(settings)
    started = time.monotonic()
    if not await stop_daemons(settings):
        say("the daemons were stopped already; sandboxes and data stay, sandkeep up goes on")
        return
    say(f"the daemons are stopped ({time.monotonic() - started:.1f} s); sandboxes and data stay, sandkeep up goes on")


def free_space(folder: Path) -> int:
    """Bytes free where `folder` is or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
