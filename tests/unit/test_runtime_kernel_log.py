"""Whom the kernel killed, from its own log; the name of a task is the guest's to choose."""

import pytest

from sandkeep.drivers.runtime._oci.kernel_log import victim

GROUP = "sandkeep-main/runc/sk-abc-000001"


def record(group: str, task: str) -> str:
    return (
        f"6,2101,3186563547,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,oom_memcg=/{group},"
        f"task_memcg=/{group},task={task},pid=29353,uid=1000\n SUBSYSTEM=none\n"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (record(GROUP, "python3"), "python3"),
        (record(f"{GROUP}/inner", "python3"), "python3"),
        (record(GROUP, "a,task=b,pid=1"), "a,task=b,pid=1"),
        (record(GROUP, "\x1b[2J"), "[2J"),
        (record(f"{GROUP}0", "python3"), None),
        (record("sandkeep-other/runc/sk-abc-000001", "python3"), None),
        (f"6,1,2,-;Memory cgroup out of memory: Killed process 1 (python3) /{GROUP}", None),
        ("", None),
    ],
)
def test_a_victim_is_read_from_its_record(text: str, found: str | None) -> None:
    assert victim(text, GROUP) == found
