"""Built-in model aliases, which need no hub."""
