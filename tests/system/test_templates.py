"""Templates are built inside a sandbox, step by step; what fails says why, and what is used stays."""

import concurrent.futures
import signal
import subprocess
import sys

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import InUse, NotFound
from support.instance import Instance, until


def template(instance: Instance, name: str) -> dict[str, object]:
    return dict(instance.json("template", "show", name))


def forget(instance: Instance, *names: str) -> None:
    for name in names:
        instance.run("template", "delete", name, check=False)


def builders(client: Client) -> list[Sandbox]:
    return [one for one in Sandbox.list(client=client) if "sandkeep.build" in one.labels]


def test_build_use_list_show_delete(client: Client, instance: Instance) -> None:
    steps = ("--run", "echo built-by-$(id -un) > /etc/mark", "--run", "mkdir -p /srv/data && echo two > /srv/data/file")
    instance.run("template", "build", "marked", "--from", "test", *steps)
    try:
        shown = template(instance, "marked")
        assert (shown["phase"], len(shown["steps"])) == ("ready", 2)  # type: ignore[arg-type]
        assert {"test", "marked"} <= {one["name"] for one in instance.json("template", "list")}
        assert until(lambda: not builders(client))
        boxes = [
            Sandbox.create(template="marked", runtime=r, memory="128MiB", client=client) for r in ("gvisor", "runc")
        ]
        for box in boxes:
            assert box.exec("cat /etc/mark /srv/data/file").stdout == "built-by-root\ntwo\n"
        boxes[0].exec("echo changed > /etc/mark", user="root")
        assert boxes[1].exec("cat /etc/mark").stdout == "built-by-root\n"
        refused = instance.run("template", "delete", "marked", check=False)
        assert refused.returncode == 5
        with pytest.raises(InUse) as error:
            client.templates.delete("marked")
        assert error.value.status == 409
        assert set(error.value.details["sandboxes"]) == {box.id for box in boxes}
        for box in boxes:
            box.delete()
    finally:
        forget(instance, "marked")
    with pytest.raises(NotFound):
        Sandbox.create(template="marked", client=client)


def test_a_step_that_fails_is_named_with_its_log(client: Client, instance: Instance) -> None:
    failed = instance.run(
        "template", "build", "broken", "--from", "test", "--run", "echo fine", "--run", "echo words of warning; exit 3",
        "--run", "touch /never", check=False,
    )  # fmt: skip
    try:
        assert failed.returncode != 0
        shown = template(instance, "broken")
        assert shown["phase"] == "failed"
        assert "step 2" in str(shown["reason"]) and "3" in str(shown["reason"])
        assert "words of warning" in failed.stdout + failed.stderr
        assert until(lambda: not builders(client))
        with pytest.raises(NotFound, match="failed"):
            Sandbox.create(template="broken", client=client)
        instance.run("template", "build", "broken", "--from", "test", "--run", "true")
        assert template(instance, "broken")["phase"] == "ready"
    finally:
        forget(instance, "broken")


def test_parallel_builds_and_uses(client: Client, instance: Instance) -> None:
    names = [f"many-{number}" for number in range(3)]

    def build(name: str) -> None:
        instance.run("template", "build", name, "--from", "test", "--run", f"echo {name} > /etc/mark")

    def use(name: str) -> str:
        with Sandbox.create(
            template=name, runtime="runc", persistence="ephemeral", memory="128MiB", client=client
        ) as box:
            return box.exec("cat /etc/mark").stdout.strip()

    try:
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            list(pool.map(build, names))
            assert list(pool.map(use, names * 2)) == names * 2
    finally:
        forget(instance, *names)


def test_delete_cancels_a_build(client: Client, instance: Instance) -> None:
    client.templates.build("halted", ["touch /begun; sleep 300"], parent="test")
    until(lambda: any(one.phase == "running" for one in builders(client)), timeout=30)
    client.templates.delete("halted")
    with pytest.raises(NotFound):
        client.templates.get("halted")
    assert builders(client) == []
    # Also when its sandbox is still being made.
    client.templates.build("halted", ["true"], parent="test")
    client.templates.delete("halted")
    assert builders(client) == []
    assert instance.fsck() == []


def test_ctrl_c_cancels_the_build_that_it_watches(client: Client, instance: Instance) -> None:
    command = [sys.executable, "-m", "sandkeep.cli.main", "template", "build", "cut-off", "--from", "test"]
    with subprocess.Popen(
        [*command, "--run", "echo begun; sleep 300"], env=instance.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as building:
        assert building.stdout and building.stderr
        assert building.stdout.readline().startswith(b"[1/1]")
        building.send_signal(signal.SIGINT)
        assert b"the build of cut-off was cancelled" in building.stderr.read()
        assert building.wait(30) == 130
    with pytest.raises(NotFound):
        client.templates.get("cut-off")
    assert builders(client) == []


def test_a_server_killed_during_a_build(client: Client, instance: Instance) -> None:
    client.templates.build("cut", ["touch /begun; sleep 300"], parent="test")
    try:
        builder = until(lambda: next((one for one in builders(client) if one.phase == "running"), None))
        until(lambda: builder.exec("test -e /begun").exit_code == 0)
        instance.kill("server")
        instance.ensure_up()
        shown = until(lambda: (one := template(instance, "cut"))["phase"] == "failed" and one, timeout=30)
        assert "server stopped" in str(shown["reason"])
        until(lambda: not builders(client), timeout=30)
        assert instance.fsck() == []
    finally:
        forget(instance, "cut")
