"""What `setup`, `up`, `down`, `demo` and `purge` refuse and say, and that nobody's things are touched."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sandkeep.sdk import Client, Sandbox
from support.instance import Instance

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


def test_make_purge_removes_what_make_up_made_and_nothing_else(tmp_path: Path) -> None:
    """In a mount namespace, where the host's places are empty folders of its own."""
    script = f"""
        set -e
        for place in /opt /usr/local/bin /etc/sandkeep /var/lib/sandkeep; do
            [ -d $place ] || continue
            mount -t tmpfs none $place
        done
        mkdir -p /opt/sandkeep/1.0 /opt/sandkeep/test-mine /opt/sandkeep/runtimes /opt/sandkeep/other
        touch /opt/sandkeep/1.0/installed /opt/sandkeep/test-mine/installed
        ln -s /opt/sandkeep/1.0 /opt/sandkeep/current
        ln -s /opt/sandkeep/current/bin/sandkeep /usr/local/bin/sandkeep
        sh {ROOT}/scripts/purge.sh 2> {tmp_path}/first
        ls /opt/sandkeep /usr/local/bin
        rm -r /opt/sandkeep/test-mine /opt/sandkeep/other
        sh {ROOT}/scripts/purge.sh 2> {tmp_path}/second
        ls /opt
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["/opt/sandkeep:", "other", "runtimes", "test-mine", "/usr/local/bin:"]
    said = (tmp_path / "first").read_text()
    assert "removing /opt/sandkeep/1.0\n" in said and "removing /usr/local/bin/sandkeep\n" in said
    assert "runtimes stays" in said
    assert "removing /opt/sandkeep/runtimes\n" in (tmp_path / "second").read_text()


@pytest.mark.parametrize("arguments", [("down",), ("purge", "--yes")])
def test_an_instance_that_never_was(instance: Instance, arguments: tuple[str, ...]) -> None:
    nowhere = {f"SANDKEEP_{what}_FOLDER": f"{instance.root}/nowhere/{what}" for what in ("DATA", "RUN", "LOG")}
    done = instance.run(*arguments, "--instance", "nope", check=False, env=nowhere)
    assert (done.returncode, done.stdout) == (3, "")
    assert "there is no instance nope" in done.stderr
    assert instance.name in done.stderr


def test_purge_that_is_not_wanted_removes_nothing(instance: Instance) -> None:
    master, slave = os.openpty()
    try:
        os.write(master, b"n\n")
        done = instance.run("purge", check=False, stdin=slave)
    finally:
        os.close(master)
        os.close(slave)
    assert done.returncode == 1
    assert "nothing was removed" in done.stderr
    assert (instance.root / "data/pool.img").exists()


def test_purge_by_somebody_else_says_nothing_but_that(instance: Instance) -> None:
    done = instance.run("purge", "--yes", check=False, user=65534, env={"HOME": "/nonexistent"})
    assert done.returncode == 4
    assert "needs root" in done.stderr or "not yours to read" in done.stderr
    assert "sudo" in done.stderr


def test_down_twice_and_up_when_a_daemon_cannot_start(client: Client, instance: Instance) -> None:
    assert "are stopped" in instance.run("down").stderr
    assert "stopped already" in instance.run("down").stderr
    port = urlsplit(instance.config["url"]).port
    assert port
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        refused = instance.run("up", check=False)
        assert refused.returncode == 7
        assert "the server ends again and again" in refused.stderr
    instance.run("down")
    instance.run("up")


def test_a_refused_option_is_not_kept(instance: Instance) -> None:
    path = instance.root / "etc" / f"{instance.name}.toml"
    before = path.read_bytes()
    refused = instance.run("setup", "--template", "test", "--pool-size", "1GiB", check=False)
    assert refused.returncode == 2
    assert "cannot shrink" in refused.stderr and "nothing was changed" in refused.stderr
    overlaps = instance.run("setup", "--template", "test", "--address-range", "127.0.0.0/16", check=False)
    assert overlaps.returncode == 5, overlaps.stderr
    assert path.read_bytes() == before
    instance.run("setup", "--template", "test")
    assert path.read_bytes() == before


@pytest.mark.parametrize("command", ["setup", "up", "doctor"])
def test_a_python_without_sqlite_is_named_at_once(instance: Instance, command: str) -> None:
    program = (
        f"import sys; sys.modules['_sqlite3'] = None; from sandkeep.cli.main import main; sys.exit(main(['{command}']))"
    )
    done = subprocess.run([sys.executable, "-c", program], env=instance.env, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "has no SQLite" in done.stdout + done.stderr
    assert "Debian's python3" in done.stdout + done.stderr


def test_demo_leaves_a_sandbox_of_that_name_alone(client: Client, instance: Instance) -> None:
    instance.run("template", "build", "base", "--from", "test", "--run", "true")
    try:
        mine = Sandbox.create(name="demo", runtime="runc", memory="128MiB", template="test", client=client)
        mine.exec("echo mine > /home/user/file")
        before = mine.view
        # Whether it ends well depends on the template, which here has not all that the demo wants.
        assert "demo-2 is deleted" in instance.run("demo", check=False).stdout
        assert [one.name for one in Sandbox.list(client=client)] == ["demo"]
        mine.refresh()
        assert mine.view == before
        assert mine.exec("cat /home/user/file").stdout == "mine\n"
    finally:
        instance.run("template", "delete", "base")
