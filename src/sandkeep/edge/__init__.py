"""The doors: each turns one protocol into calls on control (or, for the node's door, on the engine)."""
