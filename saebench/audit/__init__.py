"""The audit: how far each score of a metric can be trusted, measured on panels of SAEs whose order is known."""
