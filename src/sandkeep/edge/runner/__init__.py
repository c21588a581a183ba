"""The node's door: the runner's contract over HTTP on a unix socket."""
