"""Activation sources other than a language model's forward pass: planted features, and files of activations."""
