"""The database is lost, old or damaged records, and what fsck mends: on real machines, which must not notice."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import NotFound
from support.instance import Instance, client_of, until
from support.witness import ask, machine_pids, settled_fsck, start_witness

pytestmark = [pytest.mark.requires("btrfs", "gvisor", "runc")]


@pytest.fixture(scope="module")
def lost() -> Iterator[Instance]:
    """An instance of its own: its database is taken away more than once."""
    with Instance.made("test") as made:
        yield made


@pytest.fixture
def node(lost: Instance) -> Iterator[Instance]:
    lost.ensure_up()
    yield lost
    lost.ensure_up()
    with client_of(lost) as client:
        client.adoption.adopt()
        lost.clean(client)
        for found in client.quarantine.list():
            client.quarantine.delete(found.id)


def create(client: Client, runtime: str, **options: object) -> Sandbox:
    return Sandbox.create(template="test", runtime=runtime, memory="256MiB", client=client, **options)  # type: ignore[arg-type]


def database(instance: Instance) -> Path:
    (found,) = (instance.root / "data").rglob("*.db")
    return found


def keep_copy(instance: Instance) -> Path:
    """While the daemons are down."""
    copy = instance.root / "copy.db"
    shutil.copy(database(instance), copy)
    return copy


def put(instance: Instance, copy: Path | None) -> None:
    """This database, or none, in the place of the one there is."""
    path = database(instance)
    owner = path.stat()
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    if copy:
        shutil.copy(copy, path)
        shutil.chown(path, owner.st_uid, owner.st_gid)


def record_of(instance: Instance, sandbox_id: str) -> Path:
    return instance.root / "data/node/sandboxes" / f"{sandbox_id}.json"


@pytest.mark.long
def test_an_empty_database_beside_a_node_full_of_sandboxes(node: Instance) -> None:
    with client_of(node) as client:
        running = create(client, "runc", name="running", labels={"a": "b"})
        paused = create(client, "gvisor", name="paused", persistence="full")
        deleted = create(client, "runc", name="deleted")
        start_witness(running)
        before = ask(running)
        start_witness(paused)
        slept = ask(paused)
        paused.pause()
        deleted.delete()
        pids = machine_pids(running)
    node.run("down")
    put(node, None)
    node.run("up")
    assert "unknown to the database" in node.run("node", "list").stderr
    (view,) = node.json("node", "list")
    assert (view["paired"], view["unknown"], view["quarantined"]) == (False, 2, 0)
    findings = {(f["kind"], f["subject"]) for f in node.fsck()}
    assert {("sandbox.unknown_to_server", running.id), ("sandbox.unknown_to_server", paused.id)} <= findings
    assert "installation.other" in {kind for kind, _ in findings}
    assert "the node served installation" in node.run("doctor", check=False).stdout
    plan = {item["id"]: item for item in node.json("node", "adopt", "--plan")}
    assert set(plan) == {running.id, paused.id}
    assert machine_pids(running) == pids
    node.run("node", "adopt", "--all")
    with client_of(node) as client:
        again = Sandbox.get("running", client=client)
        assert (again.id, again.phase, again.labels) == (running.id, "running", {"a": "b"})
        after = ask(again)
        assert (after["pid"], after["ticks"] > before["ticks"]) == (before["pid"], True)
        back = Sandbox.get("paused", client=client)
        assert (back.phase, back.hold) == ("paused", "disk")
        back.resume()
        woken = ask(back)
        assert (woken["pid"], woken["ticks"] > slept["ticks"]) == (slept["pid"], True)
        with pytest.raises(NotFound):
            Sandbox.get(deleted.id, client=client)
        again.stop()
        again.start()  # epochs go on above the node's
    settled_fsck(node)
    assert node.json("node", "show")["paired"] is True


@pytest.mark.long
def test_an_older_copy_of_the_database(node: Instance) -> None:
    with client_of(node) as client:
        kept, gone, doomed = (create(client, "runc", name=name) for name in ("kept", "gone", "doomed"))
        start_witness(kept)
        node.run("down")
        copy = keep_copy(node)
        node.run("up")
        for sandbox in (kept, doomed):
            sandbox.update(labels={"a": "new"}, memory="300MiB")
        gone.delete()
        newer = create(client, "runc", name="newer")
        pids = machine_pids(kept)
    node.run("down")
    put(node, copy)
    node.run("up")
    with client_of(node) as client:
        view = Sandbox.get("kept", client=client)
        assert (view.phase, view.labels, view.memory) == ("running", {"a": "new"}, 300 << 20)
        assert machine_pids(kept) == pids
        with pytest.raises(NotFound):
            Sandbox.get("gone", client=client)
        Sandbox.get("doomed", client=client).delete()
        view.update(labels={"a": "newest"})
        (found,) = client.adoption.plan()
        assert (found.id, found.name) == (newer.id, "newer")
        node.run("node", "adopt", newer.id, "--rename", "newest")
        assert Sandbox.get("newest", client=client).exec(["echo", "on"]).stdout == "on\n"
    settled_fsck(node)


@pytest.mark.parametrize("damage", ["removed", pytest.param("torn", marks=pytest.mark.long)])
def test_the_record_is_lost_and_the_disk_is_not(node: Instance, damage: str) -> None:
    with client_of(node) as client:
        sandbox = create(client, "runc", name="one", disk="512MiB")
        sandbox.exec("echo precious > /home/user/file; sync")
        other = create(client, "runc", name="other")
        pids = machine_pids(other)
        node.run("down")
        path = record_of(node, sandbox.id)
        if damage == "removed":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:200])
        node.run("up")
        assert machine_pids(sandbox) == set()
        assert machine_pids(other) == pids
        (found,) = node.json("node", "quarantine", "list")
        assert (found["id"], found["what"], found["limit"]) == (sandbox.id, "disk", 512 << 20)
        assert found["template"] == client.templates.get("test").id
        until(lambda: Sandbox.get("one", client=client).phase == "failed")
        node.run("node", "quarantine", "restore", sandbox.id)
        back = Sandbox.get("one", client=client)
        assert back.phase == "stopped"
        back.start()
        assert back.exec(["cat", "/home/user/file"]).stdout == "precious\n"
    settled_fsck(node)


def test_a_disk_that_nobody_knows_any_more(node: Instance) -> None:
    with client_of(node) as client:
        sandbox = create(client, "runc", name="one")
        sandbox.exec("echo precious > /home/user/file; sync")
    node.run("down")
    record_of(node, sandbox.id).unlink()
    put(node, None)
    node.run("up")
    node.run("node", "quarantine", "restore", sandbox.id, "--name", "back", "--runtime", "runc")
    with client_of(node) as client:
        back = Sandbox.get("back", client=client)
        assert (back.id, back.phase, back.persistence) == (sandbox.id, "stopped", "volume")
        back.start()
        assert back.exec(["cat", "/home/user/file"]).stdout == "precious\n"
        back.delete()
        assert list(client.quarantine.list()) == []


@pytest.mark.long
def test_fsck_repairs_while_both_daemons_are_dead(node: Instance) -> None:
    with client_of(node) as client:
        kept = create(client, "runc", name="kept")
        start_witness(kept)
        before = ask(kept)
        stray = create(client, "runc", name="stray")
        stray.exec("echo precious > /home/user/file; sync")
        node.run("down")
        record_of(node, stray.id).unlink()  # its machine and network now are nobody's
        findings = {f["kind"] for f in node.fsck()}
        assert {"machine.unowned", "network.unowned", "disk.unowned"} <= findings
        pids = machine_pids(stray)
        plan = json.loads(node.run("fsck", "--repair", "--plan", "--json").stdout)
        whose = {step["kind"]: step["who"] for step in plan}
        assert (whose["machine.unowned"], whose["disk.unowned"]) == ("node", "nobody")
        assert machine_pids(stray) == pids != set()
        refused = node.run("fsck", "--repair", check=False, stdin=-3)
        assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
        assert machine_pids(stray) == pids
        done = node.run("fsck", "--repair", "--yes", "--json", check=False)
        assert done.returncode == 1  # what is left: the disk
        left = {f["kind"] for f in json.loads(done.stdout)["findings"]}
        assert left == {"disk.unowned", "sandbox.unknown_to_node"}
        assert machine_pids(stray) == set()
        node.run("up")
        after = ask(kept)
        assert (after["pid"], after["ticks"] > before["ticks"]) == (before["pid"], True)
        until(lambda: Sandbox.get("stray", client=client).phase == "failed")
        node.run("node", "quarantine", "restore", stray.id)
        assert Sandbox.get("stray", client=client).exec(["cat", "/home/user/file"]).stdout == "precious\n"
    settled_fsck(node)
