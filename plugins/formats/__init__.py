"""Built-in checkpoint formats, one family per file."""
