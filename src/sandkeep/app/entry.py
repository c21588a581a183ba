"""What the command line may call of the host side: each function is one command. Only cli/commands/host imports this.

Each imports what it needs by itself: the runner shall not carry the server's libraries (30 MB), nor the other way round.
"""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from sandkeep.app import settings as settings_module
from sandkeep.app.findings import Finding
from sandkeep.app.settings import Settings
from sandkeep.domain.errors import Unsupported

if TYPE_CHECKING:
    from pathlib import Path

    from sandkeep.app.standalone import Say

_HOST_LIBRARIES = ("fastapi", "httptools", "sqlalchemy", "structlog", "tomli_w", "uvicorn")


def load(instance: str | None = None, **overrides: Any) -> Settings:
    """The instance's settings. Raises Unsupported where only the base package is installed, InvalidArgument."""
    if any(find_spec(name) is None for name in _HOST_LIBRARIES):
        raise Unsupported(
            "this installation has the SDK and the client commands only",
            hint="pip install 'sandkeep[host]' on a Linux host",
        )
    return settings_module.load(instance, **overrides)


def setup(settings: Settings, say: "Say", templates: tuple[str, ...], asked: dict[str, Any]) -> None:
    from sandkeep.app.setup import host

    async def work() -> None:
        await host.setup(settings, say, templates=templates, asked=asked)

    anyio.run(work)


def up(settings: Settings, say: "Say") -> None:
    from sandkeep.app import standalone

    anyio.run(standalone.up, settings, say)


def down(settings: Settings, say: "Say") -> None:
    from sandkeep.app import standalone

    anyio.run(standalone.down, settings, say)


def demo(settings: Settings, say: "Say") -> str:
    from sandkeep.app.demo import Demo
    from sandkeep.sdk import Client

    with Client(instance=settings.instance) as client:
        return Demo(client, say, settings.instance).run()


def doctor(settings: Settings, deep: bool) -> list[Finding]:
    from sandkeep.app.doctor import examine

    return anyio.run(examine, settings, deep)


def fsck(settings: Settings) -> dict[str, Any]:
    from sandkeep.app.inspection import inspect

    return anyio.run(inspect, settings)


def plan_repair(settings: Settings) -> list[Any]:
    """Steps: kind, subject, who (node, server or nobody), what."""
    from sandkeep.app.inspection import plan

    return anyio.run(plan, settings)


def repair(settings: Settings) -> None:
    from sandkeep.app.inspection import repair as work

    anyio.run(work, settings)


def support_bundle(settings: Settings, target: Path) -> dict[str, Any]:
    from sandkeep.app.support import collect

    return anyio.run(collect, settings, target)


def what_purge_removes(settings: Settings) -> list[str]:
    from sandkeep.app.setup.purge import what_goes

    return what_goes(settings)


def purge(settings: Settings, say: "Say") -> None:
    from sandkeep.app.setup.purge import purge as work

    anyio.run(work, settings, say)


def server(settings: Settings) -> None:
    from sandkeep.app.daemon import give_memory_back, run
    from sandkeep.app.server import drop_privileges, run_server

    give_memory_back()
    drop_privileges(settings.user)
    run(partial(run_server, settings))


def runner(settings: Settings) -> None:
    from sandkeep.app.daemon import RUNNER_CAPABILITIES, give_memory_back, run
    from sandkeep.app.runner import run_runner
    from sandkeep.lib import privileges

    give_memory_back()
    privileges.keep_capabilities(RUNNER_CAPABILITIES)
    privileges.leave_no_trace()
    privileges.use_descriptors()
    run(partial(run_runner, settings))


def create_backup(settings: Settings, file: "Path") -> dict[str, Any]:
    from sandkeep.app.backup import create

    return anyio.run(create, settings, file)


def restore_backup(settings: Settings, file: "Path", say: "Say", restart: bool) -> dict[str, Any]:
    from sandkeep.app.backup import restore

    async def work() -> dict[str, Any]:
        return await restore(settings, file, say, restart=restart)

    return anyio.run(work)
