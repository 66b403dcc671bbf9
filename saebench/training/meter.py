"""Means of the values that one SAE's steps report, for a line of the log."""

from collections.abc import Mapping
from typing import Any


class Meter:
    """Means over steps of every number that a step reports."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def add(self, stats: Mapping[str, Any]) -> None:
        """One step's numbers."""
        self.steps.append({key: float(value) for key, value in stats.items()})

    def flush(self) -> dict[str, float]:
        """Means since the last line; the learning rate as it is now."""
        steps, self.steps = self.steps, []
        keys = dict.fromkeys(key for stats in steps for key in stats)
        means = {key: _mean([stats[key] for stats in steps if key in stats]) for key in keys}
        return means | {key: steps[-1][key] for key in ("lr", "dead_fraction") if key in keys}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
