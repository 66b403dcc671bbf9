"""Automated interpretability: the parts that `metric.py` is made of."""
