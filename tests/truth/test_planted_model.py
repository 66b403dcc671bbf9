"""The planted model against its own specification and against an independent, slow computation."""

import math
from pathlib import Path

import pytest
import torch

from saebench.catalog import load_task
from saebench.errors import UsageError
from saebench.planting import PlantedSpec
from saebench.sources.planted import PlantedModel
from saebench.streams import generator
from tests.raising import raises

SPEC = PlantedSpec(85, 24, roots=5, depth=2, branching=4, rank=3, correlation=0.2)


@pytest.fixture(scope="module")
def model() -> PlantedModel:
    return PlantedModel(SPEC)


@pytest.fixture(scope="module")
def features(model: PlantedModel) -> torch.Tensor:
    return model.sample(60_000, generator("test", 0))


def test_a_child_needs_its_parent_and_siblings_exclude_each_other(model: PlantedModel, features: torch.Tensor) -> None:
    active = features > 0
    children = (model.parent >= 0).nonzero()[:, 0]
    assert len(children) == 80
    assert not (active[:, children] & ~active[:, model.parent[children]]).any()
    for parent in range(5):
        assert int(active[:, model.parent == parent].sum(1).max()) == 1


def test_features_fire_about_as_often_as_the_specification_asks(model: PlantedModel, features: torch.Tensor) -> None:
    """Roots exactly (within sampling error); children about, since the compensation is of first order."""
    rate = (features > 0).double().mean(0)
    roots = model.probability[:5].double()
    error = (roots * (1 - roots) / len(features)).sqrt()
    assert ((rate[:5] - roots).abs() < 5 * error).all()
    ranks = torch.arange(1, 86, dtype=torch.float64) ** -0.5
    expected = 5e-4 + (0.4 - 5e-4) * (ranks - ranks.min()) / (1 - ranks.min())
    assert model.probability.double() == pytest.approx(expected, abs=1e-6)
    assert 0.6 < float(rate[5:25].mean() / model.probability[5:25].mean()) < 1.1


def test_magnitudes_of_roots_are_the_rectified_normals_of_the_specification(
    model: PlantedModel, features: torch.Tensor
) -> None:
    for j in range(5):
        values = features[:, j][features[:, j] > 0].double()
        assert values.mean() == pytest.approx(
            float(model.mean[j]), abs=5 * float(values.std()) / math.sqrt(len(values))
        )
        assert values.std() == pytest.approx(float(model.sd[j]), rel=0.05)


def test_a_childs_magnitude_scales_with_its_parents(model: PlantedModel, features: torch.Tensor) -> None:
    child = 5
    both = features[features[:, child] > 0].double()
    ratio = both[:, child] / (both[:, int(model.parent[child])] / float(model.mean[int(model.parent[child])]))
    assert ratio.mean() == pytest.approx(float(model.mean[child]), abs=5 * float(ratio.std()) / math.sqrt(len(ratio)))


def test_roots_are_correlated_as_the_copula_has_it(model: PlantedModel, features: torch.Tensor) -> None:
    """The joint rate of two roots against a bivariate normal, integrated by sampling the shared factors alone."""
    z = torch.randn(400_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    factor = model._factor.double()
    for i, j in ((0, 1), (2, 4)):
        rho = float(factor[i] @ factor[j])
        a, b = z[:, 0], rho * z[:, 0] + math.sqrt(1 - rho**2) * z[:, 1]
        p = torch.distributions.Normal(0.0, 1.0).icdf(1 - model.probability[[i, j]].double())
        expected = float(((a > p[0]) & (b > p[1])).double().mean())
        both = float(((features[:, i] > 0) & (features[:, j] > 0)).double().mean())
        assert both == pytest.approx(expected, abs=5 * math.sqrt(expected / len(features)) + 2e-3)


def test_activations_are_the_weighted_sum_of_unit_directions(model: PlantedModel, features: torch.Tensor) -> None:
    some = features[:8]
    by_hand = sum(some[:, j : j + 1].double() * model.directions[j].double() for j in range(85)) + model.bias.double()
    assert model.activations(some).double() == pytest.approx(by_hand, abs=1e-5)
    assert model.directions.norm(dim=1) == pytest.approx(torch.ones(85), abs=1e-6)
    assert float(model.bias.norm()) == pytest.approx(0.5)


def test_directions_are_pushed_apart(model: PlantedModel) -> None:
    start = PlantedModel(PlantedSpec(85, 24, orthogonal_steps=0))

    def overlap(rows: torch.Tensor) -> float:
        return float((rows @ rows.T).fill_diagonal_(0).square().sum())

    further = PlantedModel(PlantedSpec(85, 24, orthogonal_steps=300, orthogonal_rate=3e-3))
    assert overlap(further.directions) < overlap(model.directions) < overlap(start.directions)


def test_the_same_seed_gives_the_same_model_and_another_another() -> None:
    again, other = PlantedModel(SPEC), PlantedModel(PlantedSpec(85, 24, seed=7, roots=5, depth=2))
    assert torch.equal(again.directions, PlantedModel(SPEC).directions)
    assert not torch.allclose(again.directions, other.directions)


IMPOSSIBLE = [
    ("features", 0), ("d", 0), ("most", 1.0), ("least", 0.0), ("least", 0.9), ("branching", 1), ("depth", 3), ("roots", 999),
    ("rank", -1), ("bias", -1.0), ("exponent", "nan"), ("mean_first", "inf"), ("orthogonal_rate", 0.0), ("feature", 3),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE)
def test_impossible_numbers_are_refused_by_key_and_value(key: str, value: object, tmp_path: Path) -> None:
    numbers = {"features": 10, "d": 4, key: value}
    lines = ['name = "bad"', "version = 1", 'metrics = ["planted"]', "[planted]"]
    path = tmp_path / "bad.toml"
    path.write_text("\n".join([*lines, *(f"{k} = {v}" for k, v in numbers.items())]))
    with raises(UsageError, *((value,) if value in ("nan", "inf") else ("bad@1", key))):
        load_task(str(path))
