"""A machine that ends by itself, on the real runtimes: what follows is what its owner asked for, and the disk is kept."""

import time
from typing import Any

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import Conflict
from support.instance import Instance, until
from support.machines import control_groups
from support.witness import end_machine, events_of, machine_pids, settled_fsck

FILLER = "import os; os.dup2(os.memfd_create('all'), 1); os.execv('/bin/cat', ['cat', '/dev/zero'])"
"""Fills memory that belongs to no process, so that no kill inside frees it."""


BOTH = pytest.mark.parametrize("runtime", ["gvisor", pytest.param("runc", marks=pytest.mark.long)])


def create(client: Client, runtime: str, **options: Any) -> Sandbox:
    made = Sandbox.create(template="test", runtime=runtime, client=client, **({"memory": "256MiB"} | options))  # type: ignore[arg-type]
    made.exec("echo kept > kept; sync")
    return made


def conditions(sandbox: Sandbox) -> dict[str, str]:
    """Those that are true."""
    sandbox.refresh()
    return {one.kind: one.reason for one in sandbox.conditions if one.value}


def is_back(sandbox: Sandbox, failures: int) -> bool:
    sandbox.refresh()
    return sandbox.phase == "running" and sandbox.failures == failures


@pytest.mark.parametrize(("runtime", "persistence"), [("gvisor", "volume"), ("gvisor", "full"), ("runc", "volume")])
def test_it_comes_back_by_itself(client: Client, runtime: str, persistence: str, instance: Instance) -> None:
    sandbox = create(client, runtime, persistence=persistence)
    assert sandbox.on_failure == "restart"
    end_machine(sandbox)
    until(lambda: is_back(sandbox, 1), 30)
    assert sandbox.exec("cat kept", no_resume=True).stdout == "kept\n"
    told = events_of(client, sandbox.id)
    assert told.index("sandbox.exited") < told.index("sandbox.restarted")
    assert ("MemoryLost" in conditions(sandbox)) == ("sandbox.memory_lost" in told) == (persistence == "full")
    why = sandbox.why()
    assert any("machine ended" in reason for reason in why.because), why
    settled_fsck(instance)


@pytest.mark.long
def test_the_count_outlives_the_server_and_a_loop_is_said(client: Client, instance: Instance) -> None:
    sandbox = create(client, "runc")
    for number in range(1, 5):
        end_machine(sandbox)
        until(lambda number=number: is_back(sandbox, number), 60)
    instance.kill("server")
    instance.ensure_up()
    end_machine(sandbox)
    until(lambda: "CrashLoop" in conditions(sandbox), 30)
    assert (sandbox.phase, sandbox.failures) == ("stopped", 5)
    assert sandbox.restart_at is not None
    assert "the next try is at" in conditions(sandbox)["CrashLoop"]
    instance.kill("server")  # nor is what was planned forgotten
    instance.ensure_up()
    sandbox.refresh()
    assert sandbox.failures == 5
    sandbox.start()
    assert "CrashLoop" not in conditions(sandbox)
    assert (sandbox.failures, sandbox.restart_at) == (0, None)
    assert events_of(client, sandbox.id).count("sandbox.crash_loop") == 1
    assert sandbox.exec("cat kept").stdout == "kept\n"


def test_a_planned_restart_outlives_a_dead_server(client: Client, instance: Instance) -> None:
    sandbox = create(client, "gvisor")
    instance.kill("server")
    end_machine(sandbox)
    instance.ensure_up()
    until(lambda: is_back(sandbox, 1), 30)
    assert sandbox.exec("cat kept", no_resume=True).stdout == "kept\n"


@BOTH
def test_what_was_gone_when_the_node_came_back_is_started(client: Client, runtime: str, instance: Instance) -> None:
    sandbox = create(client, runtime)
    instance.run("down")
    end_machine(sandbox)
    instance.ensure_up()
    until(lambda: is_back(sandbox, 1), 30)
    assert events_of(client, sandbox.id).count("sandbox.exited") == 1
    assert sandbox.exec("cat kept", no_resume=True).stdout == "kept\n"
    settled_fsck(instance)


@BOTH
def test_stop_and_leave(client: Client, runtime: str, instance: Instance) -> None:
    stopped = create(client, runtime, on_failure="stop")
    left = create(client, runtime, name="left", on_failure="leave")
    for sandbox in (stopped, left):
        end_machine(sandbox)
    stopped.wait("stopped", timeout=20)
    left.wait("failed", timeout=20)
    settled_fsck(instance)
    with pytest.raises(Conflict) as refused:
        left.exec("true")
    assert refused.value.hint == "start it: sandkeep start left"
    instance.kill()  # server and runner: after which everything is compared
    instance.ensure_up()
    for sandbox, phase in ((stopped, "stopped"), (left, "failed")):
        sandbox.refresh()
        assert (sandbox.phase, sandbox.restart_at) == (phase, None)
    assert stopped.exec("cat kept").stdout == "kept\n"
    left.start()
    assert left.exec("cat kept").stdout == "kept\n"


@pytest.mark.long
def test_a_call_off(client: Client, instance: Instance) -> None:
    sandbox = create(client, "runc")
    for number in (1, 2, 3):
        end_machine(sandbox)
        until(lambda number=number: is_back(sandbox, number), 60)
    end_machine(sandbox)
    sandbox.wait("stopped", timeout=20)
    planned = sandbox.restart_at
    assert planned is not None
    sandbox.stop()
    assert (sandbox.phase, sandbox.restart_at) == ("stopped", None)
    until(lambda: time.time() > planned.timestamp() + 2, 20)
    sandbox.refresh()
    assert sandbox.phase == "stopped"


@BOTH
def test_what_was_held_in_memory_is_stopped_and_says_so(client: Client, runtime: str, instance: Instance) -> None:
    sandbox = create(client, runtime)
    sandbox.pause(hold="memory")
    instance.run("down")
    end_machine(sandbox)
    thaw(sandbox)
    until(lambda: not machine_pids(sandbox))
    instance.ensure_up()
    until(lambda: conditions(sandbox).get("MemoryLost"), 30)
    assert (sandbox.phase, sandbox.restart_at) == ("stopped", None)
    assert "memory was lost, the disk was kept" in sandbox.reason
    assert "sandbox.memory_lost" in events_of(client, sandbox.id)
    assert sandbox.exec("cat kept").stdout == "kept\n"


def thaw(sandbox: Sandbox) -> None:
    """Version 1's freezer lets what it holds die only then."""
    for state in control_groups(f"*{sandbox.id.partition('_')[2]}*/freezer.state"):
        state.write_text("THAWED")


def test_one_that_was_out_of_memory_as_a_whole_comes_back(client: Client, instance: Instance) -> None:
    sandbox = create(client, "gvisor", memory="512MiB")
    sandbox.start_process(["python3", "-c", FILLER]).detach()
    until(lambda: is_back(sandbox, 1), 90)
    assert "sandbox.out_of_memory" in events_of(client, sandbox.id)
    assert any("memory" in reason for reason in sandbox.why().because)
    assert sandbox.exec("cat kept", no_resume=True).stdout == "kept\n"


def test_the_command_line(client: Client, instance: Instance) -> None:
    instance.run("create", "--name", "cli", "--template", "test", "--memory", "256MiB", "--on-failure", "leave")
    assert instance.json("show", "cli")["on_failure"] == "leave"
    instance.run("update", "cli", "--on-failure", "restart")
    shown = instance.run("show", "cli").stdout
    assert "on failure:  restart\n" in shown
    told = instance.run("why", "cli").stdout
    assert told.startswith("now:     it runs (running for ")
    assert "next:    if its machine ends by itself, it is started again from its disk\n" in told
    assert "you can: sandkeep stop cli " in told
    assert instance.json("why", "cli")["can"][-1]["command"] == "sandkeep delete cli"
