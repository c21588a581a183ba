"""The OCI configuration and the filter of system calls, as values."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.machines import make_plan

from sandkeep.contracts.runtime import MachinePlan
from sandkeep.domain.errors import InvalidArgument
from sandkeep.domain.quantities import GIB, MIB
from sandkeep.domain.sandbox import Limits
from sandkeep.drivers.runtime._oci.config import config, temporary_size
from sandkeep.drivers.runtime._oci.limits import GroupLimits, for_gvisor, for_native
from sandkeep.drivers.runtime._oci.rootfs import check_root
from sandkeep.drivers.runtime._oci.seccomp import all_but, profile


@pytest.fixture
def plan() -> MachinePlan:
    return make_plan("tst-1", Path("/pool/disk"), Path("/agents/abc"), Path("/run/x/netns/1"), memory=512 * MIB)


def mounts(value: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["destination"]: mount for mount in value["mounts"]}


@pytest.mark.parametrize("gvisor", [True, False])
def test_what_both_have(plan: MachinePlan, gvisor: bool) -> None:
    value = config(plan, gvisor=gvisor, nofile=4096, cgroup="a/b")
    json.dumps(value)
    assert value["process"]["args"] == ["/.sandkeep/agent", "--port", "7300"]
    assert value["process"]["noNewPrivileges"] is False
    assert value["root"] == {"path": "/pool/disk", "readonly": False}
    assert value["hostname"] == plan.hostname
    assert {"type": "network", "path": "/run/x/netns/1"} in value["linux"]["namespaces"]
    agent = mounts(value)["/.sandkeep"]
    assert agent["source"] == "/agents/abc"
    assert {"ro", "nosuid", "nodev"} <= set(agent["options"])
    assert f"size={128 * MIB}" in mounts(value)["/tmp"]["options"]
    assert f"size={128 * MIB}" in mounts(value)["/dev/shm"]["options"]
    assert "ro" in mounts(value)["/sys"]["options"]
    assert value["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 4096}]


@pytest.mark.parametrize(
    ("gvisor", "has", "lacks"),
    [
        (True, {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_MKNOD", "CAP_SYS_CHROOT"}, {"CAP_NET_RAW", "CAP_NET_ADMIN"}),
        (
            False,
            {"CAP_SETPCAP", "CAP_NET_BIND_SERVICE"},
            {"CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SYS_PTRACE"},
        ),
    ],
)
def test_capabilities(plan: MachinePlan, gvisor: bool, has: set[str], lacks: set[str]) -> None:
    capabilities = config(plan, gvisor=gvisor, nofile=1)["process"]["capabilities"]
    for kind in ("bounding", "effective", "permitted"):
        assert has <= set(capabilities[kind])
        assert not lacks & set(capabilities[kind])
    assert "inheritable" not in capabilities
    assert "ambient" not in capabilities


def test_runc_alone(plan: MachinePlan) -> None:
    linux = config(plan, gvisor=False, nofile=1, cgroup="sandkeep-x/runc/tst-1")["linux"]
    assert linux["cgroupsPath"] == "/sandkeep-x/runc/tst-1"
    assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert {"type": "cgroup"} in linux["namespaces"]
    assert "/proc/kcore" in linux["maskedPaths"]
    assert "/proc/sys" in linux["readonlyPaths"]
    assert linux["rootfsPropagation"] == "private"
    assert linux["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert set(config(plan, gvisor=True, nofile=1)["linux"]) == {"namespaces"}


def test_temporary_size() -> None:
    assert temporary_size(GIB) == 256 * MIB
    assert temporary_size(MIB) == 16 * MIB


@pytest.mark.parametrize(
    ("limits", "native", "gvisor"),
    [
        (Limits(2, GIB, GIB, 4096), GroupLimits(200_000, GIB, 4096), GroupLimits(200_000, GIB + 256 * MIB, 9216)),
        (Limits(0.1, 64 * MIB, GIB, 16), GroupLimits(10_000, 64 * MIB, 16), GroupLimits(10_000, 320 * MIB, 4096)),
        (Limits(8, 4 * GIB, GIB, 16), GroupLimits(800_000, 4 * GIB, 16), GroupLimits(800_000, 5 * GIB, 4096)),
        (Limits(0.333, MIB + 5, GIB, 16), GroupLimits(33_300, MIB, 16), GroupLimits(33_300, 257 * MIB, 4096)),
    ],
)
def test_limits(limits: Limits, native: GroupLimits, gvisor: GroupLimits) -> None:
    assert for_native(limits) == native
    assert for_gvisor(limits) == gvisor


@pytest.mark.parametrize("name", ["dev", "proc", "sys", "etc", "run", "tmp", ".sandkeep"])
def test_a_root_with_a_link_is_refused(tmp_path: Path, name: str) -> None:
    check_root(tmp_path)
    (tmp_path / name).symlink_to("/etc")
    with pytest.raises(InvalidArgument, match=name):
        check_root(tmp_path)


def test_a_root_with_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dev").touch()
    with pytest.raises(InvalidArgument, match="dev"):
        check_root(tmp_path)


def test_all_but_matches_everything_else_once() -> None:
    refused = ((0x9400, 0xFF00), (0x5412, 0xFFFF), (0x541C, 0xFFFF))
    pairs = all_but(refused, 16)
    for number in range(1 << 16):
        is_refused = any(number & mask == value for value, mask in refused)
        assert sum(number & mask == value for value, mask in pairs) == (not is_refused)


def test_all_but_nothing() -> None:
    assert all_but((), 16) == [(0, 0)]


FORBIDDEN = """
unshare setns mount umount2 pivot_root fsopen move_mount open_tree bpf perf_event_open keyctl add_key request_key
userfaultfd io_uring_setup io_uring_enter kexec_load kexec_file_load init_module finit_module delete_module
open_by_handle_at reboot swapon acct quotactl syslog settimeofday clock_settime fanotify_init iopl ioperm
"""


def test_the_filter_names_nothing_dangerous() -> None:
    allowed = {name for rule in profile()["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert not allowed & set(FORBIDDEN.split())
    free = {name for rule in profile()["syscalls"] if "args" not in rule for name in rule["names"]}
    assert not free & {"clone", "socket", "ioctl", "personality"}


def test_arguments_that_refuse_are_masked() -> None:
    """The kernel ignores the upper half of a command: an unmasked comparison would be led around."""
    for rule in profile()["syscalls"]:
        for name in rule["names"]:
            for argument in rule.get("args", []):
                if name in {"ioctl", "clone"}:
                    assert argument["op"] == "SCMP_CMP_MASKED_EQ"
