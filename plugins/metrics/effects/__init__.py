"""Metric `effects`: change of the model's output when a single latent is removed."""
