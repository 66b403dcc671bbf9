"""The commands, a module for each kind. With `saebench/cli.py`, the only code that prints."""
