"""The shapes on the wire: what the REST API takes and gives. Times are RFC 3339, sizes bytes, durations seconds."""
