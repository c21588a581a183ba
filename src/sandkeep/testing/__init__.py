"""The whole system in one test process, on the fakes."""
