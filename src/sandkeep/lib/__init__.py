"""Small tools with no knowledge of sandboxes."""
