"""The words of the trade. Standard library only."""
