"""Snapshots of a sandbox, the way back to them, and other sandboxes made from them."""

import json
from typing import Any

import pytest

from sandkeep.sdk import Client, Output, Sandbox
from sandkeep.sdk.errors import AlreadyExists, Conflict, InvalidArgument, NotFound
from support.instance import Instance, until

TICKER = "i=0; while :; do i=$((i+1)); echo $i > /tmp/ticks.new; mv /tmp/ticks.new /tmp/ticks; sleep 0.01; done"
WRITER = """
import os
fd = os.open("/home/user/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = 0
while True:
    number += 1
    os.write(fd, b"%d\\n" % number)
    os.fsync(fd)
    os.write(1, b"%d\\n" % number)
"""
KEYGEN = """#!/bin/sh
test "$1" = -A && head -c 32 /dev/urandom | od -An -tx1 > /etc/ssh/ssh_host_ed25519_key
"""


def box(client: Client, runtime: str, **options: Any) -> Sandbox:
    return Sandbox.create(template="test", runtime=runtime, memory="128MiB", disk="512MiB", client=client, **options)  # type: ignore[arg-type]


def state(sandbox: Sandbox, path: str = "/home/user/state") -> str:
    return sandbox.exec(f"cat {path}").stdout.strip()


def put(sandbox: Sandbox, text: str, path: str = "/home/user/state") -> None:
    assert sandbox.exec(f"echo {text} > {path}").exit_code == 0


def test_back_in_time_and_forth_again(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime, name="traveller", labels={"of": "mine"})
    put(sandbox, "one")
    ticker = sandbox.start_process(["sh", "-c", TICKER])
    ticker.detach()
    until(lambda: state(sandbox, "/tmp/ticks"))
    first = sandbox.snapshot("first", tags=["good"])
    assert (first.name, first.kind, first.tags, first.parent) == ("first", "disk", ["good"], None)
    before = int(state(sandbox, "/tmp/ticks"))
    until(lambda: int(state(sandbox, "/tmp/ticks")) > before)
    assert ticker.pid in [process.pid for process in sandbox.processes()], "what runs runs on"
    put(sandbox, "two")
    second = sandbox.snapshot("second")
    put(sandbox, "three")
    sandbox.rollback("first")
    assert (sandbox.phase, sandbox.name, sandbox.labels) == ("running", "traveller", {"of": "mine"})
    assert state(sandbox) == "one"
    assert ticker.pid not in [process.pid for process in sandbox.processes() if "ticks" in str(process)]
    kept = sandbox.snapshots.list()
    assert [one.name for one in kept] == ["first", "second", None]
    assert [one.parent for one in kept] == [None, first.id, second.id], "the moment before was kept"
    put(sandbox, "another way")
    assert sandbox.snapshot("branch").parent == first.id
    sandbox.rollback(kept[2])
    assert state(sandbox) == "three"
    instance.kill("runner")
    instance.kill("server")
    instance.ensure_up()
    sandbox.rollback("second", keep_before=False)
    assert state(sandbox) == "two"
    assert len(sandbox.snapshots.list()) == 5
    assert instance.fsck() == []


@pytest.mark.long
@pytest.mark.parametrize("how", ["stopped", "paused in memory", "paused on disk"])
def test_from_every_settled_phase(client: Client, instance: Instance, runtime: str, how: str) -> None:
    if how == "paused on disk" and runtime != "gvisor":
        pytest.skip("runc keeps no memory on disk")
    sandbox = box(client, runtime, persistence="full" if how == "paused on disk" else "volume")
    put(sandbox, "then")
    assert sandbox.exec("sync").exit_code == 0
    match how:
        case "stopped":
            sandbox.stop()
        case "paused in memory":
            sandbox.pause(hold="memory")
        case _:
            sandbox.pause()
    was = sandbox.phase
    sandbox.snapshot("then")
    sandbox.refresh()
    assert sandbox.phase == was, "it was not woken"
    put(sandbox, "now")  # this wakes it
    match how:
        case "stopped":
            sandbox.stop()
        case "paused in memory":
            sandbox.pause(hold="memory")
        case _:
            sandbox.pause()
    sandbox.rollback("then", keep_before=False)
    assert sandbox.phase == "stopped"
    assert state(sandbox) == "then"
    assert instance.fsck() == []


def test_forks_are_others(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime, env={"WHO": "all of us"}, labels={"of": "mine"})
    put(sandbox, "shared")
    made = sandbox.exec(
        "set -e; mkdir -p /etc/ssh; cat > /usr/bin/ssh-keygen; chmod 755 /usr/bin/ssh-keygen; ssh-keygen -A; "
        "echo of the source > /etc/ssh/ssh_host_rsa_key.pub",
        user="root",
        stdin=KEYGEN,
    )
    assert made.exit_code == 0, made.stderr
    sandbox.snapshot("base")
    put(sandbox, "went on")
    forks = [*sandbox.fork(3, snapshot="base", name="try"), *sandbox.fork()]
    assert [fork.name for fork in forks] == ["try-1", "try-2", "try-3", None]
    assert [state(fork) for fork in forks] == ["shared"] * 3 + ["went on"]
    assert {(fork.phase, fork.exec("echo $WHO").stdout, fork.labels["of"]) for fork in forks} == {
        ("running", "all of us\n", "mine")
    }
    family = [sandbox, *forks]
    for what in ("cat /etc/machine-id", "cat /etc/ssh/ssh_host_ed25519_key", "hostname", "echo $SANDKEEP_SANDBOX_ID"):
        assert len({one.exec(what, user="root").stdout for one in family}) == len(family), what
    assert forks[0].exec("cat /etc/ssh/ssh_host_rsa_key.pub").exit_code != 0, "no key of the source is left"
    put(forks[0], "mine alone")
    assert [state(one) for one in family] == ["went on", "mine alone", "shared", "shared", "went on"]
    sandbox.delete()
    instance.kill("runner")
    instance.ensure_up()
    assert [state(fork) for fork in forks] == ["mine alone", "shared", "shared", "went on"]
    assert forks[1].snapshots.list() == []
    assert instance.fsck() == []


def test_a_fork_that_cannot_be_another_is_none(client: Client, instance: Instance) -> None:
    sandbox = box(client, "runc")
    broken = "mkdir -p /etc/ssh; touch /etc/ssh/ssh_host_rsa_key; ln -sf /bin/false /usr/bin/ssh-keygen"
    assert sandbox.exec(broken, user="root").exit_code == 0
    with pytest.raises(Exception, match="identity"):
        sandbox.fork(2)
    assert [one.id for one in Sandbox.list(client=client)] == [sandbox.id]
    assert instance.fsck() == []


@pytest.mark.long
def test_what_was_fsynced_before_is_in_it(client: Client, runtime: str) -> None:
    sandbox = box(client, runtime)
    writer = sandbox.start_process(["python3", "-c", WRITER])
    acknowledged = 0
    for output in writer:
        assert isinstance(output, Output)
        acknowledged = int(output.text.split()[-1])
        if acknowledged > 20:
            break
    sandbox.snapshot("busy")
    writer.detach()
    sandbox.rollback("busy", keep_before=False)
    lines = [int(line) for line in state(sandbox, "/home/user/log").split()]
    assert lines == list(range(1, len(lines) + 1)), "in order, and none torn"
    assert len(lines) >= acknowledged


@pytest.mark.long
def test_deleting_one_leaves_the_others_whole(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = box(client, runtime)
    for number in range(4):
        put(sandbox, str(number))
        sandbox.snapshot(f"at-{number}")
    sandbox.snapshots.delete("at-1")
    sandbox.snapshots.delete("at-3")
    found = {one.name: one for one in sandbox.snapshots.list()}
    assert found.keys() == {"at-0", "at-2"}
    assert found["at-2"].parent == found["at-0"].id
    assert sandbox.snapshot("later").parent == found["at-2"].id
    sandbox.rollback("at-0", keep_before=False)
    assert state(sandbox) == "0"
    sandbox.rollback("at-2", keep_before=False)
    assert state(sandbox) == "2"
    with pytest.raises(NotFound, match="there is no snapshot 'at-1'"):
        sandbox.rollback("at-1")
    assert instance.fsck() == []


def test_names_and_errors(client: Client) -> None:
    sandbox, other = box(client, "runc", name="one"), box(client, "runc", name="two")
    sandbox.snapshot("s")
    other.snapshot("s")
    with pytest.raises(AlreadyExists):
        sandbox.snapshot("s")
    with pytest.raises(AlreadyExists):
        sandbox.fork(snapshot="s", name="two")
    with pytest.raises(AlreadyExists):
        sandbox.fork(snapshot="s", name="one")
    for bad in ("S", "a--b", "", "x" * 41):
        with pytest.raises(InvalidArgument):
            sandbox.snapshot(bad)
    with pytest.raises(InvalidArgument):
        sandbox.snapshot(tags=["a\nb"])
    with pytest.raises(NotFound):
        sandbox.rollback(other.snapshots.get("s").id)
    with pytest.raises((InvalidArgument, Conflict)):
        sandbox.fork(0)


def test_on_the_command_line(client: Client, instance: Instance) -> None:
    sandbox = box(client, "runc", name="dev")
    put(sandbox, "then")
    instance.run("snapshot", "create", "dev", "--name", "clean", "--tag", "good")
    put(sandbox, "now")
    shown = json.loads(instance.run("snapshot", "show", "dev@clean", "--json").stdout)
    assert (shown["name"], shown["tags"], shown["kind"]) == ("clean", ["good"], "disk")
    instance.run("rollback", "dev@clean")
    assert state(sandbox) == "then"
    listed = instance.run("snapshot", "list", "dev").stdout
    assert "clean" in listed
    assert "before the rollback to clean" in listed
    forked = json.loads(instance.run("fork", "dev@clean", "--count", "2", "--name", "try", "--json").stdout)
    assert [one["name"] for one in forked] == ["try-1", "try-2"]
    instance.run("snapshot", "delete", "dev@clean")
    assert "there is no snapshot" in instance.run("rollback", "dev@clean", check=False).stderr
    assert "@" in instance.run("rollback", "dev", check=False).stderr
    kinds = [json.loads(line)["kind"] for line in instance.run("events", "dev", "--json").stdout.splitlines()]
    assert {"snapshot.created", "sandbox.rolled_back", "sandbox.forked", "snapshot.deleted"} <= set(kinds)
