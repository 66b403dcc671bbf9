"""The comparison contract: scores of several SAEs together (hook `saebench_comparisons`).

A metric measures one SAE; a comparison relates two or more of one model and hook point, such as the seeds of one recipe.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd
import torch

from saebench.metric import Score
from saebench.sae import SAE


@dataclass(frozen=True)
class Shared:
    """The common inputs of all SAEs of a comparison.

    Attributes:
        x: [N, d_in] activations at their hook point, of scored tokens; None in a comparison of weights alone.
        seed: seed of the comparison's random draws.
    """

    x: torch.Tensor | None = None
    seed: int = 0


@dataclass(frozen=True)
class Compared:
    """The outcome of a comparison.

    Attributes:
        units: as `Metric.units`: `unit_id`, `cluster_id`, and the columns that scores are declared over.
        scores: as `Metric.scores`.
        details: plain values for the record: each pair's numbers, the method that was used.
    """

    units: pd.DataFrame
    scores: Sequence[Score]
    details: dict[str, Any] = field(default_factory=dict)


class Comparison(Protocol):
    """A measurement over several SAEs.

    Attributes:
        name: the command's name and the `metric` of its scores.
        version: increased whenever a number changes.
        about: a few words on each score, by key.
    """

    name: str
    version: int
    about: dict[str, str]

    def compare(self, saes: Sequence[SAE], shared: Shared) -> Compared:
        """Compare two or more SAEs that read the same hook point of the same model.

        Raises:
            UsageError: the SAEs cannot be compared.
        """
        ...
