"""Training: recipes state a loss, the trainer makes steps of it, kernels make them fast."""
