"""What all doors share: who is it, wake and hold, error tables, limits."""
