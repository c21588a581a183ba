"""Real machines for tests: a root file system of busybox, a counting agent, network namespaces, a prober of calls."""

import ctypes
import glob
import os
import shutil
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio

from sandkeep.contracts.network import Attachment
from sandkeep.contracts.runtime import MachinePlan
from sandkeep.domain.quantities import MIB
from sandkeep.domain.sandbox import Limits, NetworkMode

COUNTING_AGENT = """#!/bin/busybox sh
[ -x /start ] && /start &
n=0
while :; do
  n=$((n + 1)); echo "$n $$" > /.counter; mv /.counter /counter
  usleep 20000
done
"""
"""Process 1 inside: runs /start when there is one, and writes `<count> <pid>` to /counter 50 times a second."""

_CLONE_NEWNET, _MS_BIND, _MNT_DETACH = 0x40000000, 4096, 2
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), what)


def control_groups(pattern: str) -> list[Path]:
    """Below every hierarchy, by a pattern of `glob`; those of others come and go while it looks, which pathlib does not bear."""
    found = glob.glob(f"/sys/fs/cgroup/**/{pattern}", recursive=True)
    return [Path(path) for path in sorted({os.path.realpath(path) for path in found})]  # some have two names


def program(name: str) -> Path:
    """The host's, else the runsc that setup fetched."""
    fetched = sorted(str(folder) for folder in Path("/opt/sandkeep/runtimes").glob("runsc-*"))
    places = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", *fetched]
    found = shutil.which(name, path=":".join(places))
    assert found, f"{name} is not installed"
    return Path(found)


def make_root(folder: Path) -> Path:
    """A root file system with busybox under all its names."""
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "run", "root"):
        (folder / name).mkdir(parents=True)
    shutil.copy(program("busybox"), folder / "bin/busybox")
    for name in ("sh", "cat", "dd", "rm", "mv", "sleep", "usleep", "tail", "head", "hostname", "free", "yes", "true"):
        (folder / "bin" / name).symlink_to("busybox")
    (folder / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    return folder


def make_agent(folder: Path, text: str | bytes = COUNTING_AGENT) -> Path:
    folder.mkdir(parents=True)
    (folder / "agent").write_bytes(text.encode() if isinstance(text, str) else text)
    (folder / "agent").chmod(0o755)
    return folder


def make_namespace(path: Path) -> Path:
    """A network namespace with nothing but loopback, kept by a bind mount on `path`."""
    path.touch()

    def make() -> None:
        _checked(_libc.unshare(_CLONE_NEWNET), "unshare")
        source = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        _checked(_libc.mount(source.encode(), str(path).encode(), None, _MS_BIND, None), "mount")

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert path.stat().st_dev != path.parent.stat().st_dev, "the namespace was not mounted"
    return path


def drop_namespace(path: Path) -> None:
    _libc.umount2(str(path).encode(), _MNT_DETACH)
    path.unlink()


def make_plan(
    machine_id: str,
    root: Path,
    agent: Path,
    namespace: Path,
    *,
    cpus: float = 2.0,
    memory: int = 256 * MIB,
    pids: int = 512,
) -> MachinePlan:
    network = Attachment(
        "sbx_test", 1, namespace, "v1", "198.18.0.1", "10.0.0.2", "10.0.0.1", (), 1500, NetworkMode.NONE
    )
    limits = Limits(cpus=cpus, memory=memory, pids=pids)
    return MachinePlan(machine_id, "sbx_test", "testling", root, agent, 7300, network, limits)


async def until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    """Returns when the condition holds: what is inside a machine gives no notice."""
    with anyio.fail_after(timeout):
        while not condition():
            await anyio.sleep(0.005)


def counter(root: Path) -> int:
    """How far the agent inside has counted; 0 before it began."""
    try:
        return int((root / "counter").read_text().split()[0])
    except (OSError, IndexError):
        return 0


async def counts_on(root: Path, by: int = 3) -> None:
    before = counter(root)
    await until(lambda: counter(root) >= before + by)


async def stands_still(root: Path) -> bool:
    """Whether nothing was counted for the time of ten counts."""
    before = (root / "counter").read_bytes()
    await anyio.sleep(0.2)
    return (root / "counter").read_bytes() == before


def syscall_prober(calls: Sequence[Sequence[int]]) -> bytes:
    """A static program (x86_64) that makes these system calls, (number, arguments...), writes each result as a signed
    64-bit number to /results, and waits. Machine code, so that the tests need no compiler."""
    base, size = 0x400000, 0x10000
    buffer = base + size - 0x1000
    code = b""

    def call(number: int, arguments: Sequence[int]) -> bytes:
        # mov r, imm64 for rdi rsi rdx r10 r8 r9 and rax, then syscall
        prefixes = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9")
        padded = [*arguments, *([0] * (6 - len(arguments)))]
        loads = b"".join(p + struct.pack("<Q", a & (1 << 64) - 1) for p, a in zip(prefixes, padded, strict=True))
        return loads + b"\x48\xb8" + struct.pack("<Q", number) + b"\x0f\x05"

    for index, (number, *arguments) in enumerate(calls):
        code += call(number, arguments) + b"\x48\xa3" + struct.pack("<Q", buffer + 8 * index)  # mov [abs64], rax
    path = buffer + 0x800
    code += call(2, (path, os.O_CREAT | os.O_WRONLY, 0o644))  # open
    code += b"\x48\x89\xc7\x48\xbe" + struct.pack("<Q", buffer)  # mov rdi, rax; mov rsi, buffer
    code += b"\x48\xba" + struct.pack("<Q", 8 * len(calls)) + b"\xb8\x01\x00\x00\x00\x0f\x05"  # rdx, write
    code += call(34, ()) + b"\xeb\xfe"  # pause
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, base, base, size, size, 0x1000)
    image = bytearray(header + segment + code)
    assert len(image) < size - 0x1000
    image.extend(bytes(size - len(image)))
    image[size - 0x800 : size - 0x800 + 9] = b"/results\0"
    return bytes(image)
