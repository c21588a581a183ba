"""Isolation technologies behind contracts.runtime: runc and runsc share only _oci."""
