"""Makes it true on one node: the runner's own logic. Reached through edge/runner or in process, never imported by control."""
