"""The btrfs disk driver: clones by snapshot, limits by simple quotas."""

from sandkeep.drivers.disk.btrfs.disks import BtrfsDisks

__all__ = ["BtrfsDisks"]
