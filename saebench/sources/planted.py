"""A generative model of activations whose features are known: the ground truth that SAE metrics are held against.

x = Σ_j f_j u_j + b with sparse, non-negative f and unit directions u_j, more of them than dimensions. Firing follows a Gaussian
copula of low rank, features form a forest in which a child needs its parent and siblings exclude each other, and a child's
magnitude scales with its parent's. With the numbers of `planted-16k` the distribution is that of SynthSAEBench-16k
(arXiv 2602.14687) as SAELens' generator has it; `tests/sources/` compares the moments.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from saebench.errors import UsageError
from saebench.streams import generator


@dataclass(frozen=True)
class PlantedSpec:
    """The numbers of a planted model.

    Attributes:
        name: of the model; records name it.
        features, d: how many features, in how many dimensions.
        seed: of directions, correlations and magnitudes.
        orthogonal_steps, orthogonal_rate: Adam steps, and their rate, that push directions apart from random unit vectors.
        exponent, least, most: feature i fires with probability i^−exponent, mapped affinely onto [least, most].
        rank, correlation: columns of the copula's factor, and the standard deviation of its entries.
        mean_first, mean_last: mean magnitude, linear from the most to the least frequent feature.
        sd_location, sd_scale: a feature's sd of magnitude is |N(sd_location, sd_scale²)|.
        roots, branching, depth: the forest, filled breadth-first in the order of frequency; 0 roots: independent features.
        bias: norm of b.
    """

    name: str
    features: int
    d: int
    seed: int = 42
    orthogonal_steps: int = 100
    orthogonal_rate: float = 3e-4
    exponent: float = 0.5
    least: float = 5e-4
    most: float = 0.4
    rank: int = 25
    correlation: float = 0.1
    mean_first: float = 5.0
    mean_last: float = 4.0
    sd_location: float = 0.5
    sd_scale: float = 0.5
    roots: int = 0
    branching: int = 4
    depth: int = 0
    bias: float = 0.5

    def __post_init__(self) -> None:
        """Refuse numbers that no model can have.

        Raises:
            UsageError: names the key and its value.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                self._refuse(field.name, "a finite number")
        rules = {
            "features": (1 <= self.features <= 2**20, "1 to 1,048,576"),
            "d": (1 <= self.d <= 2**16, "1 to 65,536"),
            "seed": (0 <= self.seed < 2**63, "a whole number of at most 63 bits"),
            "orthogonal_steps": (0 <= self.orthogonal_steps <= 10_000, "0 to 10,000"),
            "orthogonal_rate": (self.orthogonal_rate > 0, "above 0"),
            "exponent": (0 < self.exponent <= 10, "above 0 and at most 10"),
            "least": (0 < self.least <= self.most, "above 0 and at most `most`"),
            "most": (self.most < 1, "below 1"),
            "rank": (0 <= self.rank <= 4096, "0 to 4,096"),
            "correlation": (self.correlation >= 0, "0 or more"),
            "mean_first": (self.mean_first > 0, "above 0"),
            "mean_last": (self.mean_last > 0, "above 0"),
            "sd_location": (self.sd_location >= 0, "0 or more"),
            "sd_scale": (self.sd_scale >= 0, "0 or more"),
            "roots": (0 <= self.roots <= self.features, "0 to `features`"),
            "branching": (2 <= self.branching <= 1024, "2 to 1,024"),
            "depth": (0 <= self.depth <= 16 and (self.roots > 0 or self.depth == 0), "0 to 16, and 0 without roots"),
            "bias": (self.bias >= 0, "0 or more"),
        }
        for key, (holds, wanted) in rules.items():
            if not holds:
                self._refuse(key, wanted)

    def _refuse(self, key: str, wanted: str) -> None:
        raise UsageError(f"planted model {self.name}: {key} = {getattr(self, key)}, expected {wanted}")


@dataclass(frozen=True)
class Level:
    """One level of the forest.

    Attributes:
        features, parents: [m] each feature of the level and its parent.
        siblings: [groups, branching] features that exclude each other, padded with −1.
    """

    features: Tensor
    parents: Tensor
    siblings: Tensor


class PlantedModel:
    """Directions, firing and magnitudes of a planted model; samples features and activations.

    Attributes:
        directions: [features, d] unit rows u_j.
        bias: [d]
        probability: [features] the firing probability that the specification asks for.
        mean, sd: [features] of a magnitude before the relu.
        parent: [features] each feature's parent, −1 for a root.
        levels: the forest below its roots.
    """

    def __init__(self, spec: PlantedSpec) -> None:
        self.spec = spec
        self.directions = _directions(spec)
        raw = torch.randn(spec.d, generator=_stream(spec, "bias"))
        self.bias = spec.bias * raw / raw.norm()
        self.probability = _probability(spec)
        self.mean = torch.linspace(spec.mean_first, spec.mean_last, spec.features)
        normal = torch.randn(spec.features, generator=_stream(spec, "magnitudes"))
        self.sd = (spec.sd_location + spec.sd_scale * normal).abs()
        self.levels, self.parent = _forest(spec)
        factor = spec.correlation * torch.randn(spec.features, spec.rank, generator=_stream(spec, "copula"))
        # A row that leaves less than 1 % of its own variance is shortened, as SAELens does.
        norms = factor.square().sum(1, keepdim=True)
        self._factor = torch.where(norms > 0.99, factor * (0.99 / norms.clamp(min=1e-12)).sqrt(), factor)
        self._own = (1 - self._factor.square().sum(1)).sqrt()
        self._threshold = math.sqrt(2) * torch.erfinv(1 - 2 * self._compensated().clamp(max=1 - 1e-6))

    def sample(self, n: int, random: torch.Generator) -> Tensor:
        """Features f [n, features], non-negative, drawn from `random`."""
        shared = torch.randn(n, self.spec.rank, generator=random)
        gauss = torch.randn(n, self.spec.features, generator=random).mul_(self._own).addmm_(shared, self._factor.T)
        rows, fired = (gauss > self._threshold).nonzero(as_tuple=True)
        noise = torch.randn(len(fired), generator=random)
        values = gauss.zero_()  # the buffer is large; magnitudes are drawn where a feature fires only
        values[rows, fired] = (noise * self.sd[fired] + self.mean[fired]).relu_()
        for level in self.levels:
            values[:, level.features] *= values[:, level.parents] / self.mean[level.parents]
            self._exclude(values, level.siblings, random)
        return values

    def activations(self, features: Tensor) -> Tensor:
        """x [n, d] of features [n, features]."""
        x: Tensor = features @ self.directions + self.bias
        return x

    @staticmethod
    def _exclude(values: Tensor, siblings: Tensor, random: torch.Generator) -> None:
        """Keep one active feature of each group of siblings, chosen evenly; in place."""
        active = (values[:, siblings.clamp(min=0)] > 0) & (siblings >= 0)
        row, group = (active.sum(-1) > 1).nonzero(as_tuple=True)
        rivals = active[row, group]
        order = torch.rand(rivals.shape, generator=random).masked_fill_(~rivals, -1.0)
        rivals.scatter_(-1, order.argmax(-1, keepdim=True), False)
        lost, place = rivals.nonzero(as_tuple=True)
        values[row[lost], siblings[group[lost], place]] = 0.0

    def _compensated(self) -> Tensor:
        """The probabilities to draw with, so that about `probability` is left once parents and siblings have had their say."""
        drawn = self.probability.clone()
        for level in self.levels:
            drawn[level.features] /= self.probability[level.parents]
        for level in self.levels:
            for group in level.siblings:
                mine = group[group >= 0]
                if len(mine) > 1:
                    rivals = self.probability[mine].sum() - self.probability[mine]
                    drawn[mine] *= 1 + rivals.clamp(min=0) / self.probability[self.parent[mine[0]]]
        return drawn.clamp(max=1.0)


def _stream(spec: PlantedSpec, purpose: str) -> torch.Generator:
    return generator(f"planted/{purpose}", spec.seed)


def _probability(spec: PlantedSpec) -> Tensor:
    rank = torch.arange(1, spec.features + 1, dtype=torch.float64)
    curve = rank**-spec.exponent
    if spec.features == 1:
        return torch.tensor([spec.most])
    unit = (curve - curve.min()) / (curve.max() - curve.min())
    return (spec.least + (spec.most - spec.least) * unit).float()


def _directions(spec: PlantedSpec) -> Tensor:
    """Random unit rows, pushed apart by Adam on Σ_{i≠j}(u_i·u_j)² + N·Σ_i(‖u_i‖² − 1)²."""
    rows = torch.nn.functional.normalize(
        torch.randn(spec.features, spec.d, generator=_stream(spec, "directions")), dim=1
    )
    rows.requires_grad_(True)
    adam = torch.optim.Adam([rows], lr=spec.orthogonal_rate)
    for _ in range(spec.orthogonal_steps):
        adam.zero_grad()
        # Σ_{i≠j} of squared products through the [d, d] matrix: ‖UᵀU‖² − Σ‖u_i‖⁴; the [N, N] one may not fit.
        norms = rows.square().sum(1)
        loss = (rows.T @ rows).square().sum() - norms.square().sum() + spec.features * (norms - 1).square().sum()
        loss.backward()
        adam.step()
    return torch.nn.functional.normalize(rows.detach(), dim=1)


def _forest(spec: PlantedSpec) -> tuple[list[Level], Tensor]:
    """The levels below the roots, filled breadth-first until features run out; and each feature's parent."""
    parent = torch.full((spec.features,), -1, dtype=torch.long)
    level, free, levels = list(range(spec.roots)), spec.roots, []
    for _ in range(spec.depth):
        groups: list[list[int]] = []
        for above in level:
            group = list(range(free, min(free + spec.branching, spec.features)))
            parent[group] = above
            free += len(group)
            groups.append(group)
        level = [feature for group in groups for feature in group]
        if not level:
            break
        padded = [group + [-1] * (spec.branching - len(group)) for group in groups if group]
        features = torch.tensor(level)
        levels.append(Level(features, parent[features], torch.tensor(padded)))
    return levels, parent
