"""Built-in comparisons of several SAEs."""
