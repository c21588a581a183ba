"""The server daemon: the control plane and its doors, as an unprivileged user."""

import os
import pwd
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from sandkeep import __version__
from sandkeep.app.daemon import listener, only_one, until_signalled
from sandkeep.app.settings import Settings
from sandkeep.app.wiring import SystemClock
from sandkeep.contracts.clock import Clock
from sandkeep.contracts.guest import Guest
from sandkeep.contracts.runner import Runner
from sandkeep.control.adoption import Adoption
from sandkeep.control.allowance import Allowance, Quota
from sandkeep.control.archives import Archives
from sandkeep.control.browse import Browse
from sandkeep.control.events import Events
from sandkeep.control.forks import Forks
from sandkeep.control.keys import Keys
from sandkeep.control.nodes import Nodes
from sandkeep.control.portable import Portable
from sandkeep.control.promotion import Promotion
from sandkeep.control.quarantine import Quarantine
from sandkeep.control.reach import Reach
from sandkeep.control.reconciler import Reconciler
from sandkeep.control.rehearsals import Rehearsals
from sandkeep.control.retention import Kept
from sandkeep.control.sandboxes import Sandboxes
from sandkeep.control.snapshots import Snapshots
from sandkeep.control.templates import Templates
from sandkeep.control.timelines import Timelines
from sandkeep.domain.errors import InvalidArgument, Unavailable
from sandkeep.drivers.guest.agent import AgentGuest
from sandkeep.drivers.runner.remote import remote_runner
from sandkeep.edge.api.app import api_app
from sandkeep.edge.api.services import Services
from sandkeep.edge.gate.heads import LimitedHttpProtocol
from sandkeep.edge.gate.identity import Identity
from sandkeep.lib import privileges
from sandkeep.lib.retry import delays
from sandkeep.store.database import Database
from sandkeep.telemetry import log as logs


def database_of(settings: Settings, *, read_only: bool = False) -> Database:
    """Not opened yet. Call it as the server's user, who can read the password file. Raises InvalidArgument."""
    password = None
    if settings.database_password_file:
        try:
            password = settings.database_password_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(
                f"database_password_file {settings.database_password_file} cannot be read",
                hint=f"it must be there, and readable by the user {settings.user}",
            ) from error
    return Database(settings.database_url or f"sqlite:///{settings.database}", password=password, read_only=read_only)


async def run_server(settings: Settings) -> None:
    """Until SIGTERM, in a process that has dropped its privileges."""
    logs.set_up(settings.log_level)
    with only_one(settings.run_folder / "server", "server"):
        database = database_of(settings)
        try:
            await _open(database)
            async with remote_runner(str(settings.runner_socket), __version__) as runner:
                grants = settings.run_folder / "server" / "grants"
                allowance = Allowance(
                    settings.max_sandboxes, settings.max_creates, settings.max_requests, settings.max_strangers
                )
                kept = Kept(settings.events_keep_days, settings.events_keep_count)
                services = await make_services(
                    database,
                    runner,
                    AgentGuest(),
                    SystemClock(),
                    __version__,
                    grants,
                    kept,
                    allowance,
                    settings.archive_verify_every,
                )
                await _serve(settings, services)
        finally:
            with anyio.CancelScope(shield=True):
                await database.close()


async def _open(database: Database) -> None:
    """Waits for a database that does not answer: it may be starting as we are."""
    waits = delays(0.2, cap=5.0)
    while True:
        try:
            return await database.open()
        except Unavailable:
            await anyio.sleep(next(waits))


async def _serve(settings: Settings, services: Services) -> None:
    server = listener(
        api_app(services, __version__), http=LimitedHttpProtocol, ws="websockets-sansio", ws_max_size=1 << 20
    )
    listening = _listen(settings)
    async with until_signalled("server"), anyio.create_task_group() as tasks:
        services.templates.start(tasks)
        tasks.start_soon(services.reconciler.run)
        logs.log("daemon.started", daemon="server", version=__version__, port=settings.port)
        await server.serve([listening])


async def make_services(
    database: Database,
    runner: Runner,
    guest: Guest,
    clock: Clock,
    version: str,
    grants: Path | None = None,
    kept: Kept | None = None,
    allowance: Allowance | None = None,
    verify_every: float = 0.0,
) -> Services:
    """The control plane over an open database; its tasks (templates, reconciler) are the caller's to start."""
    allowance = allowance or Allowance()
    events = Events(database, clock)
    keys = Keys(events, clock, grants)
    sandboxes = Sandboxes(events, runner, guest, clock, Quota(allowance, clock))
    snapshots = Snapshots(events, sandboxes, runner, guest, clock)
    archives = Archives(events, sandboxes, snapshots, runner)
    reach = Reach(sandboxes, runner, archives, guest)
    templates = Templates(events, sandboxes, reach, runner, guest, clock)
    installation = await keys.default_project()
    await keys.load()
    timelines = Timelines(events, sandboxes, snapshots, runner, clock)
    forks = Forks(events, sandboxes, snapshots)
    nodes = Nodes(events, runner, installation)
    rehearsals = Rehearsals(events, sandboxes, snapshots, runner, clock, verify_every)
    reconciler = Reconciler(
        events,
        sandboxes,
        templates,
        snapshots,
        timelines,
        rehearsals,
        nodes,
        runner,
        clock,
        installation,
        kept or Kept(),
    )
    return Services(
        version=version,
        identity=Identity(keys, allowance),
        keys=keys,
        sandboxes=sandboxes,
        reach=reach,
        templates=templates,
        snapshots=snapshots,
        timelines=timelines,
        forks=forks,
        promotion=Promotion(events, sandboxes, snapshots, forks, clock),
        browse=Browse(events, sandboxes, snapshots, reach, runner, guest),
        archives=archives,
        portable=Portable(events, sandboxes, runner),
        rehearsals=rehearsals,
        events=events,
        reconciler=reconciler,
        nodes=nodes,
        adoption=Adoption(events, nodes, runner, clock),
        quarantine=Quarantine(events, sandboxes, runner, clock),
        runner=runner,
        guest=guest,
    )


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # named, not 0: asyncio switches Nagle's algorithm off only for sockets that say so, and an answer is two writes
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        raise Unavailable(
            f"the server cannot listen on {settings.host}:{settings.port}: {error.strerror}",
            hint="another program has the port: set `port` in the instance's settings file",
        ) from error
    listening.listen(1024)
    listening.setblocking(False)
    return listening


def drop_privileges(user: str) -> None:
    """Become the unprivileged system user for good, also when started as it."""
    account = pwd.getpwnam(user)
    privileges.become(account.pw_uid, account.pw_gid)
    privileges.never_gain()
    privileges.leave_no_trace()
    privileges.use_descriptors()
    os.environ["HOME"] = account.pw_dir


@contextmanager
def acting_as(user: str) -> Iterator[None]:
    """The body opens and makes files, and connects, as the server would; root again afterwards."""
    if os.geteuid() != 0:
        yield
        return
    account = pwd.getpwnam(user)
    group, mask = os.getegid(), os.umask(0o077)
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.umask(mask)
