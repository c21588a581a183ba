"""The agent in a sandbox."""
