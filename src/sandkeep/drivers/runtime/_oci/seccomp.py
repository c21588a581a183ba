"""The system calls that a runc machine may make: an allow-list, so that what a future kernel adds is refused.

It differs from the profiles of the distributions in that user namespaces, keyrings, io_uring, performance events and
all socket families but local, IPv4, IPv6 and the plain parts of netlink are refused: AF_ALG, AF_RXRPC, AF_VSOCK and
XFRM were ways into the kernel in 2026. The native architecture alone: the 32-bit doors (socketcall) would lead around
the rules.
"""

import platform
from functools import cache
from typing import Any

from sandkeep.drivers.runtime._oci.syscalls import ALLOWED

EPERM, ENOSYS = 1, 38

_NEW_NAMESPACES = 0x7E020000
"""All CLONE_NEW* flags of clone."""
_PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
"""Linux, with and without its two harmless flags, and the question for it."""
_FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6."""
_NETLINK = 16
_NETLINK_PROTOCOLS = (0, 4, 9, 15)
"""ROUTE, SOCK_DIAG, AUDIT (which sudo asks for), KOBJECT_UEVENT."""

_REFUSED_IOCTLS = ((0x9400, 0xFF00), (0x5412, 0xFFFF), (0x541C, 0xFFFF))
"""(value, mask) of the low 16 bits: all of btrfs (subvolumes and snapshots would escape the sandbox's disk limit),
TIOCSTI and TIOCLINUX (typing into somebody's terminal)."""
_ALLOWED_IOCTLS = (0x40049409, 0x4020940D, 0xC0189436)
"""FICLONE, FICLONERANGE, FIDEDUPERANGE: numbered among btrfs's, but harmless and used by cp."""


@cache
def profile() -> dict[str, Any]:
    """The `linux.seccomp` section."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": [_native()],
        "syscalls": [
            {"names": list(ALLOWED), "action": "SCMP_ACT_ALLOW"},
            _allow("clone", _equal(0, 0, mask=_NEW_NAMESPACES)),
            # its flags are in memory, where no filter can read them; the C libraries fall back to clone
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
            *(_allow("personality", _equal(0, value)) for value in _PERSONALITIES),
            *(_allow("socket", _equal(0, family)) for family in _FAMILIES),
            *(_allow("socket", _equal(0, _NETLINK), _equal(2, protocol)) for protocol in _NETLINK_PROTOCOLS),
            *(_allow("ioctl", _equal(1, value, mask=0xFFFFFFFF)) for value in _ALLOWED_IOCTLS),
            *(_allow("ioctl", _equal(1, value, mask=mask)) for value, mask in all_but(_REFUSED_IOCTLS, 16)),
        ],
    }


def _native() -> str:
    return {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}[platform.machine()]


def all_but(refused: tuple[tuple[int, int], ...], bits: int) -> list[tuple[int, int]]:
    """(value, mask) pairs that together match every number of `bits` bits but the refused ones. A refused pair's mask
    is a prefix of the number. A filter can say equal under a mask, and or; this is how it says not: a number differs
    from a refused one first in some bit, so the pairs are the branches that leave the paths to the refused ones."""
    found: list[tuple[int, int]] = []
    waiting = [(0, 0)]
    while waiting:
        value, mask = waiting.pop()
        under = [r for r in refused if r[0] & mask == value & r[1] & mask and r[0] & mask & r[1] == value & r[1]]
        if not under:
            found.append((value, mask))
        elif not any(r[1] & mask == r[1] for r in under):
            bit = 1 << (bits - 1 - mask.bit_count())
            waiting += [(value, mask | bit), (value | bit, mask | bit)]
    return sorted(found)


def _equal(index: int, value: int, *, mask: int | None = None) -> dict[str, Any]:
    """The kernel takes most numbers as 32 bits: where a match is to refuse, the mask leaves out the upper ones."""
    if mask is None:
        return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _allow(name: str, *conditions: dict[str, Any]) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": list(conditions)}
