"""Metrics, one table of numbers a file."""
