"""The outside world: one folder per contract."""
