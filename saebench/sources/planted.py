"""A generative model of activations with known features: the ground truth for SAE metrics.

x = Σ_j f_j u_j + b with sparse, non-negative f and unit directions u_j, more of them than dimensions. Firing follows a Gaussian
copula of low rank, features form a forest in which a child needs its parent and siblings exclude each other, and a child's
magnitude scales with its parent's. With the parameters of `planted-16k` the distribution is that of SynthSAEBench-16k
(arXiv 2602.14687) in SAELens' implementation; `tests/truth/test_planted_model.py` compares the moments.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from saebench.planting import PlantedSpec
from saebench.streams import generator


@dataclass(frozen=True)
class Level:
    """One level of the forest.

    Attributes:
        features, parents: [m] the features of the level and their parents.
        siblings: [groups, branching] mutually exclusive features, padded with −1.
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
        mean, sd: [features] mean and sd of a magnitude before the ReLU.
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
        # A row that leaves less than 1 % of its own variance is scaled down, as in SAELens.
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
        values = gauss.zero_()  # reuse the large buffer; magnitudes are drawn only where a feature fires
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
        """Keep one active feature of each group of siblings, chosen uniformly; in place."""
        active = (values[:, siblings.clamp(min=0)] > 0) & (siblings >= 0)
        row, group = (active.sum(-1) > 1).nonzero(as_tuple=True)
        rivals = active[row, group]
        order = torch.rand(rivals.shape, generator=random).masked_fill_(~rivals, -1.0)
        rivals.scatter_(-1, order.argmax(-1, keepdim=True), False)
        lost, place = rivals.nonzero(as_tuple=True)
        values[row[lost], siblings[group[lost], place]] = 0.0

    def _compensated(self) -> Tensor:
        """Sampling probabilities that leave about `probability` after the exclusions by parents and siblings."""
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
        # Σ_{i≠j} of squared products from the [d, d] matrix, ‖UᵀU‖² − Σ‖u_i‖⁴; an [N, N] matrix may not fit in memory.
        norms = rows.square().sum(1)
        loss = (rows.T @ rows).square().sum() - norms.square().sum() + spec.features * (norms - 1).square().sum()
        loss.backward()
        adam.step()
    return torch.nn.functional.normalize(rows.detach(), dim=1)


def _forest(spec: PlantedSpec) -> tuple[list[Level], Tensor]:
    """(levels, parents): the levels below the roots, filled breadth-first until features run out; each feature's parent."""
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
