"""Metric `steering`: does adding a latent's direction make the model say what the latent stands for?"""
