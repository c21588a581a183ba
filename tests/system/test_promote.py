"""Of several forks that tried something one wins: its state becomes the parent's, which stays who it is."""

import json
from typing import Any

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import Conflict, InvalidArgument, NotFound
from support.instance import Instance, until
from support.witness import end_machine

IDENTITY = "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key; hostname; echo $SANDKEEP_SANDBOX_ID"
COUNTER = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/n.new; mv /dev/shm/n.new /dev/shm/n; sleep 0.01; done"
KEYGEN = """#!/bin/sh
test "$1" = -A && head -c 32 /dev/urandom | od -An -tx1 > /etc/ssh/ssh_host_ed25519_key
"""


def said(sandbox: Sandbox, command: str) -> str:
    done = sandbox.exec(command, user="root")
    assert done.exit_code == 0, done.stderr
    return done.stdout.strip()


def parent_of(client: Client, runtime: str, **options: Any) -> Sandbox:
    options = {"memory": "192MiB", "labels": {"of": "mine"}, "env": {"WHO": "us"}, **options}
    parent = Sandbox.create("dev", template="test", runtime=runtime, disk="512MiB", client=client, **options)  # type: ignore[arg-type]
    keys = "mkdir -p /etc/ssh; cat > /usr/bin/ssh-keygen; chmod 755 /usr/bin/ssh-keygen; ssh-keygen -A"
    assert parent.exec(keys, user="root", stdin=KEYGEN).exit_code == 0
    return parent


def test_the_best_of_three(client: Client, instance: Instance, runtime: str) -> None:
    parent = parent_of(client, runtime)
    who = said(parent, IDENTITY)
    forks = parent.fork(3, name="try", kind="disk")
    for number, fork in enumerate(forks):
        said(fork, f"echo try {number} > /home/user/state; sync")
        assert said(fork, IDENTITY) != who
    said(parent, "echo mine > /home/user/state")
    shown = instance.run("promote", "try-2", "--into", "dev", "--kind", "disk", "--delete-others", "--json").stdout
    assert json.loads(shown)["id"] == parent.id
    parent.refresh()
    assert (parent.name, parent.phase, parent.labels) == ("dev", "running", {"of": "mine"})
    assert said(parent, "cat /home/user/state; echo $WHO") == "try 1\nus"
    assert said(parent, IDENTITY) == who
    assert [one.name for one in Sandbox.list(client=client)] == ["try-2", "dev"]
    before, promoted = parent.snapshots.list()[-2:]
    assert (before.reason, promoted.reason) == ("before try-2 was promoted", "promoted from try-2")
    assert {"sandbox.promoted", "sandbox.rolled_back"} <= {
        one.kind for one in client.events() if one.subject == parent.id
    }
    forks[1].delete()
    parent.rollback(before, keep_before=False)
    assert said(parent, "cat /home/user/state") == "mine"
    parent.stop()
    parent.rollback(promoted, keep_before=False)
    instance.kill("runner")
    instance.ensure_up()
    assert said(parent, "cat /home/user/state") == "try 1", "the fork is gone, and its moment stays"
    assert said(parent, IDENTITY) == who
    assert instance.fsck() == []


def test_processes_of_the_fork_go_on_in_the_parent(client: Client, instance: Instance) -> None:
    parent = parent_of(client, "gvisor", persistence="full")
    who = said(parent, IDENTITY)
    (fork,) = parent.fork(name="try")
    fork.start_process(["sh", "-c", COUNTER], user="root").detach()
    until(lambda: fork.exec("cat /dev/shm/n", user="root").exit_code == 0)
    count = int(said(fork, "cat /dev/shm/n"))
    promoted = fork.promote(parent)
    assert (promoted.id, promoted.phase) == (parent.id, "running")
    assert int(said(parent, "cat /dev/shm/n")) >= count
    assert said(parent, IDENTITY) == who
    assert parent.receipt().event == "rollback"
    assert said(fork, IDENTITY) != who
    parent.pause()
    count = int(said(parent, "cat /dev/shm/n"))  # this wakes it
    until(lambda: int(said(parent, "cat /dev/shm/n")) > count)
    moment = next(one for one in parent.snapshots.list() if one.reason == "promoted from try")
    fork.delete()
    end_machine(parent)
    until(lambda: parent.refresh() or parent.phase in ("running", "stopped"))
    parent.rollback(moment, keep_before=False)
    assert int(said(parent, "cat /dev/shm/n")) > 0, "its memory opens without the fork"
    assert said(parent, IDENTITY) == who
    assert len(parent.fork(snapshot=moment)) == 1
    assert instance.fsck() == []


def test_names_and_errors(client: Client) -> None:
    parent = parent_of(client, "runc")
    with pytest.raises(InvalidArgument, match="into itself"):
        parent.promote("dev")
    with pytest.raises(NotFound):
        parent.promote("nobody")
    other = Sandbox.create("other", template="test", runtime="gvisor", memory="128MiB", client=client)
    with pytest.raises(Conflict, match="runs on"):
        parent.promote(other)
    assert parent.snapshots.list() == other.snapshots.list() == []
