"""Tasks: one TOML a task, with the text they use in data/."""
