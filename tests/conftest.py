"""What all tests share: a network namespace of the test run's own, markers, and one instance for the system tests."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from sandkeep.sdk import Client
from support import netns
from support import postgres as postgresql
from support.instance import Instance, client_of
from support.ledger import Ledger
from support.postgres import Postgres
from support.power import Host


def pytest_configure(config: pytest.Config) -> None:
    """Before any thread is started: nothing that the tests send can leave this host."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children too: a shell may start us in the background
    if os.geteuid() == 0 and not config.option.collectonly:
        netns.private_network()
    if os.environ.get("SANDKEEP_TESTS") == "all":
        config.pluginmanager.register(Ledger(), "ledger")


def _lacks(what: str) -> str | None:
    """None when the host has it, else why not."""
    if what in ("btrfs", "mmdebstrap", "netns", "cgroups") and os.geteuid() != 0:
        return "needs root"
    programs = {"btrfs": "mkfs.btrfs", "gvisor": "runsc", "runsc": "runsc", "runc": "runc", "mmdebstrap": "mmdebstrap"}
    program = programs.get(what)
    places = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/bin"
    if program == "runsc" and list(Path("/opt/sandkeep/runtimes").glob("runsc-*/runsc")):
        return None
    if what == "postgres":
        return None if postgresql.programs() else "postgresql is not installed"
    if program and not shutil.which(program, path=places):
        return f"{program} is not installed"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`requires` skips visibly on a laptop, and fails where REQUIRED names what is missing; `long` runs in test-all."""
    required = set(filter(None, os.environ.get("REQUIRED", "").split(",")))
    everything = os.environ.get("SANDKEEP_TESTS") == "all"
    for item in items:
        if item.get_closest_marker("long") and not everything:
            item.add_marker(pytest.mark.skip(reason="long: make test-all"))
        for marker in item.iter_markers("requires"):
            for what in marker.args:
                reason = _lacks(what)
                if reason and what in required:
                    pytest.exit(f"REQUIRED={what}, but {reason}", returncode=1)
                if reason:
                    item.add_marker(pytest.mark.skip(reason=f"{what}: {reason}"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """A whole instance with the `test` template, beside whatever else runs on this host."""
    with Instance.made("test") as made:
        yield made


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """An instance on a disk of its own, whose power can be cut. A test leaves it up, and without sandboxes."""
    with Host.made("test") as made:
        yield made


@pytest.fixture
def client(instance: Instance) -> Iterator[Client]:
    """A client; what a test made is deleted after it, also when it failed."""
    instance.ensure_up()
    with client_of(instance) as made:
        yield made
        instance.ensure_up()
        instance.clean(made)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server; a test that kills it starts it again."""
    with Postgres.made() as made:
        yield made


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.requires("postgres"))])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database that is new and empty, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sandkeep.db"
    url: str = request.getfixturevalue("postgres").fresh()
    return url


@pytest.fixture(params=["gvisor", "runc"])
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)
