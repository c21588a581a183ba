"""The only SQL. Control reads and writes through here; every change is one transaction."""
