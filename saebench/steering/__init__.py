"""Steer by hand: continuations of a prompt with a latent's direction added, and latents to steer with."""
