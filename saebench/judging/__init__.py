"""Asking a language model: replay, limits, retries, batches, prices."""
