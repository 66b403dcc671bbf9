"""A run, from a request to records: plan, cost, passes, scores, resume."""
