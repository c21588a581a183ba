"""The runner from afar."""
