"""Parameters of a planted model, whose features are known. `sources/planted.py` builds the model."""

from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from saebench.schema import CLOSED, Count, Real, Whole

_Positive = Annotated[Real, Field(gt=0)]
_NotNegative = Annotated[Real, Field(ge=0)]


@dataclass(frozen=True, config=CLOSED)
class PlantedSpec:
    """The parameters of a planted model.

    Attributes:
        features, d: number of features, and of dimensions.
        seed: of directions, correlations and magnitudes.
        orthogonal_steps, orthogonal_rate: number and rate of the Adam steps that push random unit directions apart.
        exponent, least, most: feature i fires with probability i^−exponent, mapped affinely onto [least, most].
        rank, correlation: columns of the copula's factor, and the standard deviation of its entries.
        mean_first, mean_last: mean magnitude, linear from the most to the least frequent feature.
        sd_location, sd_scale: a feature's sd of magnitude is |N(sd_location, sd_scale²)|.
        roots, branching, depth: the forest, filled breadth-first in the order of frequency; 0 roots: independent features.
        bias: norm of the constant.
    """

    features: Annotated[Whole, Field(le=2**20)]
    d: Annotated[Whole, Field(le=2**16)]
    seed: Count = 42
    orthogonal_steps: Annotated[Count, Field(le=10_000)] = 100
    orthogonal_rate: _Positive = 3e-4
    exponent: Annotated[_Positive, Field(le=10)] = 0.5
    least: _Positive = 5e-4
    most: Annotated[_Positive, Field(lt=1)] = 0.4
    rank: Annotated[Count, Field(le=4096)] = 25
    correlation: _NotNegative = 0.1
    mean_first: _Positive = 5.0
    mean_last: _Positive = 4.0
    sd_location: _NotNegative = 0.5
    sd_scale: _NotNegative = 0.5
    roots: Count = 0
    branching: Annotated[Whole, Field(ge=2, le=1024)] = 4
    depth: Annotated[Count, Field(le=16)] = 0
    bias: _NotNegative = 0.5

    @model_validator(mode="after")
    def _require_sound(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least = {self.least} is above most = {self.most}")
        if self.roots > self.features:
            raise ValueError(f"roots = {self.roots} is above features = {self.features}")
        if self.depth and not self.roots:
            raise ValueError(f"depth = {self.depth} needs roots: give roots, or depth = 0")
        return self


@dataclass(frozen=True, config=CLOSED)
class SampleSpec:
    """The samples of a planted model in one measurement.

    Attributes:
        contexts: number of contexts, which are the clusters of every interval.
        length: independent samples per context.
    """

    contexts: Annotated[Whole, Field(le=10**6)] = 256
    length: Annotated[Whole, Field(le=10**5)] = 256
