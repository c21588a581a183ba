"""The btrfs ioctls that the disk driver needs, each one call. Layouts: linux/btrfs.h and linux/btrfs_tree.h.

By ioctl and not by the btrfs command: a snapshot is 1 to 2 ms against 5, and btrfs-progs before 6.7 know no simple
quotas. Every function raises OSError as the kernel gave it. `where` is any folder inside the file system meant.
"""

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_WRITE, _READ = 1, 2


def _request(direction: int, number: int, size: int) -> int:
    """<asm-generic/ioctl.h>; 0x94 is BTRFS_IOCTL_MAGIC."""
    return direction << 30 | size << 16 | 0x94 << 8 | number


_RESIZE = _request(_WRITE, 3, 4096)
_SYNC = _request(0, 8, 0)
_TREE_SEARCH = _request(_WRITE | _READ, 17, 4096)
_INO_LOOKUP = _request(_WRITE | _READ, 18, 4096)
_SPACE_INFO = _request(_WRITE | _READ, 20, 16)
_SNAP_CREATE_V2 = _request(_WRITE, 23, 4096)
_SUBVOL_CREATE_V2 = _request(_WRITE, 24, 4096)
_SUBVOL_GETFLAGS = _request(_READ, 25, 8)
_SUBVOL_SETFLAGS = _request(_WRITE, 26, 8)
_DEV_INFO = _request(_WRITE | _READ, 30, 4096)
_FS_INFO = _request(_READ, 31, 1024)
_INO_PATHS = _request(_WRITE | _READ, 35, 56)
_QUOTA_CTL = _request(_WRITE | _READ, 40, 16)
_QGROUP_CREATE = _request(_WRITE, 42, 16)
_QGROUP_LIMIT = _request(_READ, 43, 48)
_LOGICAL_INO_V2 = _request(_WRITE | _READ, 59, 56)
_GET_SUBVOL_INFO = _request(_READ, 60, 504)
_GET_FSLABEL = _request(_READ, 49, 256)
_SNAP_DESTROY_V2 = _request(_WRITE, 63, 4096)

_GROUP_METADATA, _GLOBAL_RESERVE = 1 << 2, 1 << 49
_COPIES = {1 << 4: 2, 1 << 5: 2, 1 << 6: 2, 1 << 9: 3, 1 << 10: 4}  # RAID1, DUP, RAID10, RAID1C3, RAID1C4
_SUBVOL_RDONLY, _SUBVOL_QGROUP_INHERIT, _SUBVOL_SPEC_BY_ID = 1 << 1, 1 << 2, 1 << 4
_QUOTA_ENABLE_SIMPLE = 4
_LIMIT_MAX_RFER = 1
_STATUS_SIMPLE_MODE = 1 << 3
_IGNORE_OFFSET = 1

FIRST_FREE_OBJECTID = 256
"""The lowest id of a subvolume that somebody made, and the inode number of every subvolume's root folder."""
_LAST_FREE_OBJECTID = 2**64 - 256
_ROOT_TREE, _QUOTA_TREE = 1, 8
_ROOT_ITEM, _ROOT_REF = 132, 156
_QGROUP_STATUS, _QGROUP_INFO, _QGROUP_RELATION = 240, 242, 246
_MOST = 2**64 - 1


@dataclass(frozen=True)
class Item:
    """One item of a btree: its key and its bytes."""

    objectid: int
    kind: int
    offset: int
    data: bytes


def _call(where: Path | int, request: int, payload: bytearray) -> bytearray:
    fd = where if isinstance(where, int) else os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.ioctl(fd, request, payload if payload else 0)
    finally:
        if not isinstance(where, int):
            os.close(fd)
    return payload


def _volume_args(name: bytes, *, fd: int = 0, flags: int = 0, size: int = 0, pointer: int = 0) -> bytearray:
    """struct btrfs_ioctl_vol_args_v2."""
    return bytearray(struct.pack("=qQQQQ16x4040s", fd, 0, flags, size, pointer, name))


def _inherit(group: int) -> ctypes.Array[ctypes.c_char]:
    """struct btrfs_qgroup_inherit with one group: what is made is a member before anything can be written to it."""
    return ctypes.create_string_buffer(struct.pack("=10Q", 0, 1, 0, 0, 0, 0, 0, 0, 0, group), 80)


def create_subvolume(parent: Path, name: str, group: int | None = None) -> None:
    """An empty one; a member of `group` from birth."""
    if group is None:
        _call(parent, _SUBVOL_CREATE_V2, _volume_args(os.fsencode(name)))
        return
    joined = _inherit(group)  # alive until the call has returned
    pointer = ctypes.addressof(joined)
    args = _volume_args(os.fsencode(name), flags=_SUBVOL_QGROUP_INHERIT, size=80, pointer=pointer)
    _call(parent, _SUBVOL_CREATE_V2, args)


def snapshot(source: Path, parent: Path, name: str, *, group: int | None, readonly: bool) -> None:
    """Clone the subvolume `source` as `parent`/`name`, a member of `group` from birth. Flushes what is dirty in the
    source first (1.2 to 2 ms per MB), then commits: when it returns the clone is on the disk."""
    fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        flags = _SUBVOL_RDONLY if readonly else 0
        if group is None:
            _call(parent, _SNAP_CREATE_V2, _volume_args(os.fsencode(name), fd=fd, flags=flags))
            return
        joined = _inherit(group)  # alive until the call has returned
        flags |= _SUBVOL_QGROUP_INHERIT
        pointer = ctypes.addressof(joined)
        _call(parent, _SNAP_CREATE_V2, _volume_args(os.fsencode(name), fd=fd, flags=flags, size=80, pointer=pointer))
    finally:
        os.close(fd)


def destroy_subvolume(where: Path, subvolume: int) -> None:
    """By id, so no path inside it is ever walked. ENOTEMPTY while it holds other subvolumes. The name is gone at once,
    the space when the kernel's cleaner has passed."""
    payload = bytearray(struct.pack("=qQQ32xQ4032x", 0, 0, _SUBVOL_SPEC_BY_ID, subvolume))
    _call(where, _SNAP_DESTROY_V2, payload)


def subvolume_id(folder: Path) -> int:
    """The id of the subvolume that `folder` is the root of. Raises OSError(EINVAL) when it is the root of none."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(fd).st_ino != FIRST_FREE_OBJECTID:
            raise OSError(errno.EINVAL, "not a subvolume", str(folder))
        answer = _call(fd, _INO_LOOKUP, bytearray(struct.pack("=QQ4080x", 0, FIRST_FREE_OBJECTID)))
        return int(struct.unpack_from("=Q", answer)[0])
    finally:
        os.close(fd)


def set_readonly(folder: Path, readonly: bool) -> None:
    (flags,) = struct.unpack("=Q", _call(folder, _SUBVOL_GETFLAGS, bytearray(8)))
    flags = flags | _SUBVOL_RDONLY if readonly else flags & ~_SUBVOL_RDONLY
    _call(folder, _SUBVOL_SETFLAGS, bytearray(struct.pack("=Q", flags)))


def is_readonly(folder: Path) -> bool:
    (flags,) = struct.unpack("=Q", _call(folder, _SUBVOL_GETFLAGS, bytearray(8)))
    return bool(flags & _SUBVOL_RDONLY)


def nested_subvolumes(where: Path, subvolume: int) -> list[int]:
    """Ids of the subvolumes that lie directly in this one."""
    found = _search(where, _ROOT_TREE, (subvolume, _ROOT_REF, 0), (subvolume, _ROOT_REF, _MOST))
    return [item.offset for item in found]


def subvolume_ids(where: Path) -> set[int]:
    """Every subvolume that still has a tree, those included that are deleted but not yet cleaned."""
    first, last = (FIRST_FREE_OBJECTID, 0, 0), (_LAST_FREE_OBJECTID, _ROOT_ITEM, _MOST)
    return {item.objectid for item in _search(where, _ROOT_TREE, first, last) if item.kind == _ROOT_ITEM}


@dataclass(frozen=True)
class RootTimes:
    """A subvolume in the table of roots, by transactions, as of the last commit. generation: that which last wrote its root block
    (making a snapshot of it does, too); changed: that which last changed a file; made: that which made it; uuid, parent: its
    own, and that of what it is a snapshot of (zeros: of nothing)."""

    generation: int
    changed: int
    made: int
    uuid: bytes
    parent: bytes


def root_times(folder: Path) -> RootTimes:
    """Of the subvolume that `folder` is the root of (struct btrfs_root_item)."""
    subvolume = subvolume_id(folder)
    newest: RootTimes | None = None
    for item in _search(folder, _ROOT_TREE, (subvolume, _ROOT_ITEM, 0), (subvolume, _ROOT_ITEM, _MOST)):
        (generation,) = struct.unpack_from("=Q", item.data, 160)
        changed, made = struct.unpack_from("=2Q", item.data, 295)
        newest = RootTimes(generation, changed, made, item.data[247:263], item.data[263:279])
    if newest is None:
        raise FileNotFoundError(errno.ENOENT, "no such subvolume", str(folder))
    return newest


def uuids(folder: Path) -> tuple[bytes, bytes]:
    """Of the subvolume that `folder` is the root of: its own, and that of what it is a snapshot of (struct
    btrfs_ioctl_get_subvol_info_args). Known before the next commit, too."""
    answer = bytearray(504)
    _call(folder, _GET_SUBVOL_INFO, answer)
    return bytes(answer[296:312]), bytes(answer[312:328])


def items_since(folder: Path, transaction: int) -> Iterator[Item]:
    """The items of a subvolume's tree in blocks that were written after this transaction; what is older is not looked at."""
    return _search(folder, 0, (0, 0, 0), (_MOST, 255, _MOST), since=transaction + 1)


def roots_of(where: Path, address: int) -> set[int]:
    """The subvolumes whose files refer to any part of the extent at this address. More than fit into the answer are none
    that could be told apart: then 0 is among them."""
    room = ctypes.create_string_buffer(4096)
    args = struct.pack("=QQ24xQQ", address, len(room), _IGNORE_OFFSET, ctypes.addressof(room))
    try:
        _call(where, _LOGICAL_INO_V2, bytearray(args))
    except FileNotFoundError:  # it was freed meanwhile
        return set()
    _, _, count, missed = struct.unpack_from("=4I", room.raw)
    found = {struct.unpack_from("=3Q", room.raw, 16 + 8 * number)[2] for number in range(0, count, 3)}
    return found | {0} if missed else found


def names_of_inode(folder: Path, inode: int) -> list[bytes]:
    """Every path of a file in the subvolume that `folder` is the root of; those that fit into 64 KiB."""
    size = 64 << 10
    found = ctypes.create_string_buffer(size)  # struct btrfs_data_container
    _call(folder, _INO_PATHS, bytearray(struct.pack("=QQ32xQ", inode, size, ctypes.addressof(found))))
    (count,) = struct.unpack_from("=I", found, 8)
    head, most = 16, (size - 16) // 8
    offsets = struct.unpack_from(f"={min(count, most)}Q", found, head)
    return [ctypes.string_at(ctypes.addressof(found) + head + offset) for offset in offsets if head + offset < size]


def sync(where: Path) -> None:
    """Commit now: all that was written survives a power cut."""
    _call(where, _SYNC, bytearray())


def resize_to_device(where: Path) -> None:
    """Grow the file system to the size that its device has now."""
    _call(where, _RESIZE, bytearray(struct.pack("=q4088s", 0, b"max")))


def metadata_free(where: Path) -> int:
    """Bytes that its trees may still grow: what is left in their block groups, less the kernel's reserve, and what belongs
    to no group yet. statvfs(2) tells of data only: with its metadata full a file system has room, and takes nothing."""
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        left, copies = 0, 1
        for flags, total, used in _space_infos(fd):
            if flags & _GLOBAL_RESERVE:
                left -= total - used
            elif flags & _GROUP_METADATA:
                left += total - used
                copies = max([copies, *(count for profile, count in _COPIES.items() if flags & profile)])
        return max(0, left + _unallocated(fd) // copies)
    finally:
        os.close(fd)


def _space_infos(fd: int) -> Iterator[tuple[int, int, int]]:
    """Flags, total and used bytes of each kind of block group (struct btrfs_ioctl_space_info)."""
    slots = 32
    answer = _call(fd, _SPACE_INFO, bytearray(struct.pack("=QQ", slots, 0)) + bytearray(24 * slots))
    (found,) = struct.unpack_from("=Q", answer, 8)
    for number in range(min(found, slots)):
        yield struct.unpack_from("=QQQ", answer, 16 + 24 * number)


def _unallocated(fd: int) -> int:
    """Bytes of the devices that belong to no block group."""
    (most,) = struct.unpack_from("=Q", _call(fd, _FS_INFO, bytearray(1024)))
    left = 0
    for device in range(1, most + 1):
        try:
            answer = _call(fd, _DEV_INFO, bytearray(struct.pack("=Q4088x", device)))
        except OSError as error:
            if error.errno != errno.ENODEV:  # one that was removed
                raise
            continue
        used, total = struct.unpack_from("=QQ", answer, 24)
        left += max(0, total - used)
    return left


def label(where: Path) -> str:
    return bytes(_call(where, _GET_FSLABEL, bytearray(256))).split(b"\0", 1)[0].decode(errors="replace")


# quota groups


def enable_simple_quota(where: Path) -> None:
    """Sets an incompatible feature: kernels before 6.7 mount the file system no more."""
    _call(where, _QUOTA_CTL, bytearray(struct.pack("=QQ", _QUOTA_ENABLE_SIMPLE, 0)))


def quota_is_simple(where: Path) -> bool | None:
    """None: quotas are off. False: the classic kind is on."""
    try:
        for item in _search(where, _QUOTA_TREE, (0, _QGROUP_STATUS, 0), (0, _QGROUP_STATUS, 0)):
            return bool(struct.unpack_from("=3Q", item.data)[2] & _STATUS_SIMPLE_MODE)
    except FileNotFoundError:
        pass
    return None


def create_group(where: Path, group: int) -> None:
    """Raises FileExistsError when the group exists."""
    _call(where, _QGROUP_CREATE, bytearray(struct.pack("=QQ", 1, group)))


def remove_group(where: Path, group: int) -> None:
    """EBUSY while it has members, a living subvolume or bytes charged to it (as kernels from 6.10 on check)."""
    _call(where, _QGROUP_CREATE, bytearray(struct.pack("=QQ", 0, group)))


def limit_group(where: Path, group: int, limit: int) -> None:
    """`limit` in bytes. Raises FileNotFoundError when there is no such group."""
    _call(where, _QGROUP_LIMIT, bytearray(struct.pack("=6Q", group, _LIMIT_MAX_RFER, limit, 0, 0, 0)))


def group_usage(where: Path, group: int) -> int | None:
    """Bytes charged to the group, as of the last commit. None when there is no such group."""
    for item in _search(where, _QUOTA_TREE, (0, _QGROUP_INFO, group), (0, _QGROUP_INFO, group)):
        return _referenced(item)
    return None


@dataclass(frozen=True)
class GroupTable:
    """All groups: bytes charged as of the last commit, and the members of each."""

    usage: dict[int, int]
    members: dict[int, set[int]]


def groups(where: Path) -> GroupTable:
    table = GroupTable({}, {})
    for item in _search(where, _QUOTA_TREE, (0, 0, 0), (_MOST, 255, _MOST)):
        if item.kind == _QGROUP_INFO:
            table.usage[item.offset] = _referenced(item)
        elif item.kind == _QGROUP_RELATION and item.objectid > item.offset:  # each is there twice: parent to child too
            table.members.setdefault(item.objectid, set()).add(item.offset)
    return table


def _referenced(item: Item) -> int:
    return int(struct.unpack_from("=2Q", item.data)[1])


def _search(
    where: Path, tree: int, first: tuple[int, int, int], last: tuple[int, int, int], since: int = 0
) -> Iterator[Item]:
    """Items with first <= (objectid, type, offset) <= last, as compound keys: a caller filters types in between. Tree 0: of
    the subvolume of `where`. since: the oldest transaction whose blocks are looked at."""
    while True:
        key = struct.pack(
            "=7Q4I32x", tree, first[0], last[0], first[2], last[2], since, _MOST, first[1], last[1], 4096, 0
        )
        answer = _call(where, _TREE_SEARCH, bytearray(key.ljust(4096, b"\0")))
        (count,) = struct.unpack_from("=I", answer, 64)
        if not count:
            return
        position = 104
        found = Item(*first, b"")
        for _ in range(count):
            _, objectid, offset, kind, length = struct.unpack_from("=3Q2I", answer, position)
            found = Item(objectid, kind, offset, bytes(answer[position + 32 : position + 32 + length]))
            yield found
            position += 32 + length
        first = _after(found)
        if first > last:
            return


def _after(item: Item) -> tuple[int, int, int]:
    if item.offset < _MOST:
        return item.objectid, item.kind, item.offset + 1
    if item.kind < 255:
        return item.objectid, item.kind + 1, 0
    return min(item.objectid + 1, _MOST), 0, 0
