"""From what was asked for to records: plan, cost, measure, score, resume."""
