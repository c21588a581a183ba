"""The network of each sandbox, and the guests' resolver."""
