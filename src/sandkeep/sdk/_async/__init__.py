"""The SDK, one protocol concern per file. _async is written by hand, _sync is made from it by scripts/unasync.py."""
