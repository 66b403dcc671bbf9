"""Metric `steering`: effect of adding a latent's direction; `steering_judged`: ratings of steered text by a judge."""
