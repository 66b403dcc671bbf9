"""Built-in reports: renderers of leaderboards."""
