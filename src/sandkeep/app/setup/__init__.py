"""Prepares a host for an instance, and takes back what it did."""
