"""persistence=snapshot: each session starts from one point, and what becomes of it is said at its creation."""

import json
from typing import Any

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import Conflict, InvalidArgument, Unsupported
from support.instance import Instance
from support.witness import end_machine

STATE = "/home/user/state"


def box(client: Client, runtime: str, **options: Any) -> Sandbox:
    options = {"persistence": "snapshot", **options}
    return Sandbox.create(template="test", runtime=runtime, memory="128MiB", disk="512MiB", client=client, **options)  # type: ignore[arg-type]


def said(sandbox: Sandbox, command: str) -> str:
    done = sandbox.exec(command, user="root")
    assert done.exit_code == 0, done.stderr
    return done.stdout.strip()


def state(sandbox: Sandbox) -> str:
    return said(sandbox, f"cat {STATE} 2>/dev/null || echo nothing")


def test_each_session_starts_from_the_same_point(client: Client, instance: Instance, runtime: str) -> None:
    source = box(client, runtime, name="source", persistence="volume")
    said(source, f"echo prepared > {STATE}")
    source.snapshot("clean")
    sandbox = box(client, runtime, name="room", source="source@clean")
    assert (sandbox.view.persistence, sandbox.view.commit) == ("snapshot", "never")
    who = said(sandbox, "cat /etc/machine-id")
    assert who != said(source, "cat /etc/machine-id")
    for how in ("stop", "end", "node"):
        assert state(sandbox) == "prepared"
        said(sandbox, f"echo dirty > {STATE}; sync")
        match how:
            case "stop":
                sandbox.stop()
            case "end":
                end_machine(sandbox)
                sandbox.wait("stopped")
            case _:
                sandbox.stop()
                instance.kill("runner")
                instance.ensure_up()
        assert state(sandbox) == "prepared"
        assert said(sandbox, "cat /etc/machine-id") == who
    with pytest.raises(Conflict, match="commit=never"):
        sandbox.commit()
    source.delete()
    sandbox.stop()
    assert state(sandbox) == "prepared", "it stands on its own"
    assert instance.fsck() == []


@pytest.mark.parametrize("runtime", ["runc", pytest.param("gvisor", marks=pytest.mark.long)])
def test_a_stop_commits_where_that_was_asked(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime, commit="on-stop")
    for number in range(3):
        said(sandbox, f"echo {number} > {STATE}")
        sandbox.stop()
        assert state(sandbox) == str(number)
    said(sandbox, f"echo lost > {STATE}; sync")
    end_machine(sandbox)
    sandbox.wait("stopped")
    assert state(sandbox) == "2", "an end that nobody asked for commits nothing"
    kept = list((instance.root / "data/pool/sandboxes" / sandbox.id / "generations").iterdir())
    assert len(kept) == 1, "points of before are gone"
    assert instance.fsck() == []


def test_a_point_is_committed_by_hand(client: Client, instance: Instance) -> None:
    sandbox = box(client, "runc", name="manual", commit="manual")
    said(sandbox, f"echo one > {STATE}")
    shown = json.loads(instance.run("commit", "manual", "--name", "one", "--json").stdout)
    assert (shown["name"], shown["reason"]) == ("one", "committed")
    said(sandbox, f"echo two > {STATE}")
    sandbox.stop()
    assert state(sandbox) == "one"
    sandbox.snapshots.delete("one")
    sandbox.stop()
    assert state(sandbox) == "one", "the point outlives its snapshot"
    said(sandbox, f"echo three > {STATE}")
    sandbox.commit("three")
    sandbox.snapshot("four")
    sandbox.rollback("three", keep_before=False)
    assert state(sandbox) == "three"
    assert instance.fsck() == []


def test_names_and_errors(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="persistence=snapshot"):
        box(client, "runc", persistence="volume", commit="manual")
    with pytest.raises(InvalidArgument, match="NAME@SNAPSHOT"):
        box(client, "runc", source="dev")
    volume = box(client, "runc", persistence="volume")
    with pytest.raises(Unsupported, match="nothing to commit"):
        volume.commit()
    with pytest.raises(Unsupported):
        box(client, "runc").pause()
