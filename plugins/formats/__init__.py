"""Checkpoint formats, one family a file."""
