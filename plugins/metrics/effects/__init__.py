"""Metric `effects`: what breaks without a single latent."""
