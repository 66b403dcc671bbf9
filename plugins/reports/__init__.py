"""Renderers of leaderboards."""
