"""The metric `planted`: scores of a dictionary against planted features."""
