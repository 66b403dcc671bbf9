"""Declared scores and their units: columns, clusters, and the units that several SAEs share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import pandas as pd

from saebench.errors import SaebenchError

Kind = Literal["ratio", "area"]


class Declared(Protocol):
    """The declaration that `saebench.Score` and `Ratio` share; `Ratio` describes the fields."""

    @property
    def num(self) -> str | None: ...
    @property
    def den(self) -> str | None: ...
    @property
    def offset(self) -> float: ...
    @property
    def scale(self) -> float: ...
    @property
    def count(self) -> str | None: ...
    @property
    def within(self) -> tuple[float, float] | None: ...
    @property
    def kind(self) -> Kind: ...


@dataclass(frozen=True)
class Ratio:
    """A declared score without its name.

    Attributes:
        num, den: columns of the units. `ratio`: offset + scale · Σnum/Σden. `area` (under the ROC curve): `num` holds the
            decision values and `den` the class numbers; with more than two classes the decision columns are `num_0`, `num_1`, …
        count: the column whose sum is n; None counts the units.
        within: the least and the largest possible value.
        kind: ratio or area.
    """

    num: str
    den: str
    offset: float = 0.0
    scale: float = 1.0
    count: str | None = None
    within: tuple[float, float] | None = None
    kind: Kind = "ratio"


def column(units: pd.DataFrame, name: str) -> np.ndarray:
    """A column as float64.

    Raises:
        SaebenchError: the column is missing or holds a value that is not finite.
    """
    if name not in units.columns:
        raise SaebenchError(f"the units have no column '{name}' (they have: {', '.join(map(str, units.columns))})")
    values = units[name].to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        where = f"unit {units['unit_id'].iloc[row]}" if "unit_id" in units.columns else f"row {row}"
        raise SaebenchError(f"column '{name}' is {values[row]} at {where}: the score cannot be computed")
    return values


def columns_of(score: Declared) -> tuple[str, str]:
    """`num` and `den` of a score.

    Raises:
        SaebenchError: the score has none.
    """
    if score.num is None or score.den is None:
        raise SaebenchError("a score without num and den columns cannot be resampled")
    return score.num, score.den


def clusters_of(units: pd.DataFrame) -> tuple[np.ndarray, int]:
    """The cluster number of each unit, and the number of clusters.

    Raises:
        SaebenchError: there are no units, or one has no cluster.
    """
    if "cluster_id" not in units.columns:
        raise SaebenchError("the units have no column 'cluster_id'")
    codes, names = pd.factorize(units["cluster_id"])
    if len(codes) == 0:
        raise SaebenchError("there are no units: no score can be computed")
    if (codes < 0).any():
        raise SaebenchError("the units have a missing 'cluster_id'")
    return codes, len(names)


def shared(frames: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The frames reduced to the units that all of them have, in one order.

    Raises:
        SaebenchError: no unit is shared, or a unit appears twice or lies in different clusters.
    """
    for frame in frames:
        if not {"unit_id", "cluster_id"} <= set(frame.columns):
            raise SaebenchError("the units have no columns 'unit_id' and 'cluster_id'")
        if frame["unit_id"].duplicated().any():
            twice = frame["unit_id"][frame["unit_id"].duplicated()].iloc[0]
            raise SaebenchError(f"unit {twice} appears twice: these units cannot be paired")
    first = frames[0]["unit_id"]
    if not all(first.equals(f["unit_id"]) for f in frames[1:]):
        common = pd.Index(first)
        for frame in frames[1:]:
            common = common.intersection(pd.Index(frame["unit_id"]), sort=False)
        if common.empty:
            raise SaebenchError("no unit is shared: these were not measured on the same contexts")
        common = common.sort_values()
        frames = [f.set_index("unit_id").loc[common].reset_index() for f in frames]
    clusters = frames[0]["cluster_id"].to_numpy()
    for frame in frames[1:]:
        other = frame["cluster_id"].to_numpy()
        if (clusters != other).any():
            row = int(np.flatnonzero(clusters != other)[0])
            unit = frame["unit_id"].iloc[row]
            raise SaebenchError(f"unit {unit} lies in different documents: these were not measured on the same corpus")
    return list(frames)
