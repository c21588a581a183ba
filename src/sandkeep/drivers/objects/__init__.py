"""Where archives are kept, by the settings."""
