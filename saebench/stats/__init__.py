"""Intervals, paired differences and ranks, computed from the units that every metric returns.

A score is offset + scale · Σnum/Σden over units, or an area under the ROC curve over units; units of one cluster (the
contexts of one document) are not independent. Both rest on one estimator, the cluster-robust CR2 with Bell and
McCaffrey's degrees of freedom (Bell & McCaffrey 2002, Survey Methodology 28(2); Imbens & Kolesár 2016, Review of Economics
and Statistics 98(4)): `estimate.py` for ratios, `areas.py` for areas. `intervals.py` makes intervals and differences,
`ranks.py` places many SAEs.

Why not a bootstrap: by simulation (tests/test_stats.py) CR2 keeps 94 to 97 % coverage from 10 to 200 clusters, with
unequal, skewed and correlated data, where a percentile bootstrap falls to 85 % and a studentised one to 90 %; it needs
no seed, and its p-values have no floor, so that a correction over thousands of pairs can use them.
"""

from saebench.stats.estimate import RESOLUTION
from saebench.stats.intervals import (
    LEVEL,
    Difference,
    Interval,
    auroc_interval,
    independent_difference,
    paired_difference,
    ratio_interval,
)
from saebench.stats.ranks import Verdict, holm, ranks, standing, verdict
from saebench.stats.units import Declared, Kind, Ratio

__all__ = [
    "LEVEL",
    "RESOLUTION",
    "Declared",
    "Difference",
    "Interval",
    "Kind",
    "Ratio",
    "Verdict",
    "auroc_interval",
    "holm",
    "independent_difference",
    "paired_difference",
    "ranks",
    "ratio_interval",
    "standing",
    "verdict",
]
