"""Scores of a dictionary against planted features."""
