"""Drivers without a host, for logic tests."""
