"""Probes on latents, and the baselines beside them."""
