"""What the OCI runtimes share: the configuration, control groups, folders, and how a machine's end is noticed."""
