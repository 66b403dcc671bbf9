"""The metric `planted` on dictionaries whose right answer is known."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from saebench.plugins.metrics.planted.metric import Planted

from saebench.metric import Batch, Env, Truth
from saebench.planting import PlantedSpec
from saebench.sae import SAE, Latents
from saebench.sources.planted import PlantedModel
from saebench.stats import ratio_interval
from saebench.streams import generator
from saebench.testing import random_sae

MODEL = PlantedModel(PlantedSpec(21, 64, roots=5, branching=4, depth=1, orthogonal_steps=400, orthogonal_rate=1e-2))
Fire = Callable[[torch.Tensor], torch.Tensor]


def values(decoder: torch.Tensor, fire: Fire, tokens: int = 40_000, parts: int = 1) -> dict[str, float]:
    """Scores of a dictionary whose latents are `fire(features)`."""
    features = MODEL.sample(tokens, generator("test", 3))
    z = fire(features)
    sae = random_sae(64, len(decoder))
    sae = SAE(**{**sae.__dict__, "W_dec": decoder})
    metric = Planted(sae)
    for some, latents in zip(features.chunk(parts), z.chunk(parts), strict=True):
        n = len(some)
        batch = Batch(
            torch.zeros(n, 1, dtype=torch.long), torch.zeros(n, 1, dtype=torch.bool), torch.ones(n, 1, dtype=torch.bool),
            np.arange(n), np.arange(n), torch.arange(1), _latents=Latents.from_dense(latents[:, None]),
            _truth=Truth(some[:, None], MODEL.directions, MODEL.parent),
        )  # fmt: skip
        metric.update(batch)
    units = metric.units()
    scores = metric.scores(Env(sae))
    return {s.key: float(s.value) if s.num is None else ratio_interval(units, s).value for s in scores}


def test_the_oracle_scores_one() -> None:
    got = values(MODEL.directions, lambda f: f)
    for key in ("mcc", "f1", "f1_live", "precision", "recall", "uniqueness", "features_found"):
        assert got[key] == pytest.approx(1.0), key
    assert got["absorption"] == 0.0


def test_decoder_scale_and_batches_change_nothing() -> None:
    scale = torch.logspace(-2, 2, 21)[:, None]
    plain = values(MODEL.directions, lambda f: f)
    assert values(scale * MODEL.directions, lambda f: f / scale[:, 0], parts=7) == pytest.approx(plain)


def test_a_permuted_decoder_loses_detection_and_keeps_mcc() -> None:
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    got = values(MODEL.directions[order], lambda f: f)
    assert got["mcc"] == pytest.approx(1.0)
    assert got["f1"] < 0.3


def test_random_rows_are_at_chance() -> None:
    rows = torch.randn(21, 64, generator=torch.Generator().manual_seed(5))
    got = values(rows, lambda f: f.flip(1))
    null = [
        values(torch.randn(21, 64, generator=torch.Generator().manual_seed(s)), lambda f: f.flip(1), 500)["mcc"]
        for s in range(6, 12)
    ]
    assert got["mcc"] == pytest.approx(float(np.mean(null)), abs=0.03)
    assert got["features_found"] <= 0.1


def test_a_planted_absorption_is_read_exactly() -> None:
    """The parent's latent is silenced in 60 % of the tokens with a child: absorption .6 for every parent."""
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(9))

    def absorbed(features: torch.Tensor) -> torch.Tensor:
        z = features.clone()
        child = torch.zeros(len(z), 5)
        for c in range(5, 21):
            child[:, MODEL.parent[c]] += features[:, c]
        z[:, :5] *= ~((child > 0) & (uniform[: len(z), None] < 0.6))
        return z

    features = MODEL.sample(40_000, generator("test", 3))
    expected = []
    for p in range(5):
        kids = (MODEL.parent == p).nonzero()[:, 0]
        if len(kids):
            both = (features[:, p] > 0) & (features[:, kids] > 0).any(1)
            expected.append(float((uniform[both] < 0.6).double().mean()))
    assert values(MODEL.directions, absorbed)["absorption"] == pytest.approx(np.mean(expected))
    assert values(MODEL.directions, absorbed)["absorption"] == pytest.approx(0.6, abs=0.03)


def test_a_duplicate_earns_no_second_feature_and_a_mirror_image_none() -> None:
    decoder = MODEL.directions.clone()
    decoder[1] = decoder[0]
    twin = values(decoder, lambda f: torch.cat([f[:, :1], f[:, :1], f[:, 2:]], 1))
    assert twin["uniqueness"] == pytest.approx(20 / 21)
    assert twin["features_found"] == pytest.approx(20 / 21)
    mirror = MODEL.directions.clone()
    mirror[0] *= -1
    assert values(mirror, lambda f: f)["features_found"] == pytest.approx(20 / 21)


def test_a_dead_latent_counts_as_zero_in_f1_and_not_at_all_in_f1_live() -> None:
    def dead(features: torch.Tensor) -> torch.Tensor:
        z = features.clone()
        z[:, 3] = 0
        return z

    got = values(MODEL.directions, dead)
    assert got["f1"] == pytest.approx(20 / 21)
    assert got["f1_live"] == pytest.approx(1.0)
