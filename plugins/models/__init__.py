"""Model aliases that need no hub."""
