"""Where root file systems come from."""
