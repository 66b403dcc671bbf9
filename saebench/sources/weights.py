"""The source of a run that reads the weights of SAEs alone."""

import numpy as np

from saebench.corpus import Contexts
from saebench.sources.source import ArraySource


class WeightsSource(ArraySource):
    """No activations at all; its identity is a constant, so that a record depends on the SAE and its metrics only."""

    kind = "weights"

    def __init__(self) -> None:
        super().__init__("weights", "weights")

    def contexts(self) -> Contexts:
        """None."""
        return Contexts(np.zeros((0, 1), dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros((0, 1), dtype=bool), ())
