"""One of everything on both runtimes, so that a broken build shows itself first."""

from sandkeep.sdk import Client, Sandbox
from support.instance import Instance


def test_create_exec_delete(client: Client, runtime: str, instance: Instance) -> None:
    sandbox = Sandbox.create(template="test", runtime=runtime, memory="256MiB", client=client)
    assert sandbox.phase == "running"
    done = sandbox.exec("id -un; pwd; python3 -c 'print(6*7)'")
    assert (done.exit_code, done.stdout) == (0, "user\n/home/user\n42\n")
    sandbox.delete()
    assert sandbox.id not in {found.id for found in Sandbox.list(client=client)}
    assert instance.fsck() == []
