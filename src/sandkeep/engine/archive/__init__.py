"""The archive: a sandbox's disk and memory as sealed pieces and signed manifests, in a format of our own."""
