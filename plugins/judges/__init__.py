"""Judges: who answers the questions of metrics that ask."""
