"""A sandbox whose disk is full gets some room to be cleaned in, for one stay; then its own limit holds again."""

import pytest

from sandkeep.sdk import Client, Sandbox
from sandkeep.sdk.errors import Conflict
from support.instance import Instance

MIB = 1 << 20
FILL = "head -c {mib}M /dev/zero >> {path}; sync -f . 2>&1; stat -c %s {path} 2>/dev/null || echo 0"


def fill(sandbox: Sandbox, mib: int, path: str = "all") -> int:
    """Bytes that the file has then."""
    return int(sandbox.exec(FILL.format(mib=mib, path=path)).stdout.split()[-1])


def rescue(sandbox: Sandbox) -> str | None:
    sandbox.refresh()
    return next((one.reason for one in sandbox.conditions if one.kind == "Rescue" and one.value), None)


@pytest.mark.parametrize("runtime", ["runc", pytest.param("gvisor", marks=pytest.mark.long)])
def test_a_full_disk_is_cleaned_in_rescue(client: Client, instance: Instance, runtime: str) -> None:
    sandbox = Sandbox.create("packed", template="test", runtime=runtime, memory="128MiB", disk=80 * MIB, client=client)
    packed = fill(sandbox, 200)
    assert 40 * MIB < packed <= 80 * MIB
    with pytest.raises(Conflict, match="rescue is for the next start"):
        sandbox.start(rescue=True)
    sandbox.stop()
    instance.run("start", "packed", "--rescue")
    assert "64 MiB above its limit" in (rescue(sandbox) or "")
    assert sandbox.stats().disk_limit == 144 * MIB
    instance.kill("runner")  # the room is in the record: it is the same after a restart
    instance.ensure_up()
    assert rescue(sandbox)
    roomy = fill(sandbox, 200)
    assert packed + 40 * MIB < roomy <= 144 * MIB
    sandbox.start(rescue=True)  # again: nothing changes
    assert rescue(sandbox)
    sandbox.start()
    assert rescue(sandbox) is None
    assert fill(sandbox, 20, "more") < 8 * MIB
    assert sandbox.exec("rm all more; sync -f .; echo cleaned").stdout == "cleaned\n"
    assert fill(sandbox, 20, "again") == 20 * MIB
    sandbox.stop()
    sandbox.start()
    assert rescue(sandbox) is None
    assert fill(sandbox, 200, "again") <= 80 * MIB
    assert sandbox.stats().disk_limit == 80 * MIB
    assert instance.fsck() == []


def test_a_stop_ends_the_rescue(client: Client, instance: Instance) -> None:
    sandbox = Sandbox.create(template="test", runtime="runc", memory="128MiB", disk=80 * MIB, client=client)
    sandbox.stop()
    sandbox.start(rescue=True)
    sandbox.stop()
    assert rescue(sandbox) is None
    sandbox.start()
    assert fill(sandbox, 200) <= 80 * MIB
