"""What each part may ask of another: Protocols that state guarantees."""
