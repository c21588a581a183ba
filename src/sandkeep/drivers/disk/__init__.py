"""Drivers that fulfil contracts.disks: btrfs with a hard limit per sandbox, and plain directories."""
