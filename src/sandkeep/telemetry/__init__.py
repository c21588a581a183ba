"""What the daemons say about themselves: logs and metrics. Every name lives here."""
