"""The guests' name server: a small unprivileged program of its own. See __main__."""
