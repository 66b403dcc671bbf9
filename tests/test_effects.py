"""Metric `effects` on models where the effect of a latent is known in closed form."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from saebench.plugins.metrics.effects.measure import Firing, ablate, divergence, sparsity
from saebench.plugins.metrics.effects.metric import Effects
from saebench.plugins.metrics.effects.settings import Settings

import saebench
from saebench.errors import SaebenchError
from saebench.lens import contribution, token_scale
from saebench.metric import Env, get_state, set_state
from saebench.sae import SAE, LayerNorm, TokenScale
from saebench.stats import ratio_interval
from saebench.testing import check_metric, lens_env, random_sae
from tests import kills
from tests.planted_model import PlantedModel, batch_of, one_hot_sae, rescaled
from tests.raising import raises

V, HORIZON = 40, 4


class Few(Effects):
    settings = Settings(latents=10, firings=5, fewest=2, horizon=HORIZON)


def world(W_dec: torch.Tensor | None = None, **options: bool) -> tuple[PlantedModel, SAE, torch.Tensor]:
    """Tokens are one-hot activations, logits read them off: latent v fires on token v."""
    model = PlantedModel(2 * torch.eye(V), torch.eye(V), **options)
    ids = torch.randint(1, V, (30, 12), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = 0
    return model, one_hot_sae(torch.eye(V) if W_dec is None else W_dec), ids


def measured(model: PlantedModel, sae: SAE, ids: torch.Tensor, size: int = 30, parts: int = 1, **lens: object) -> dict:
    metrics = [Few(sae) for _ in range(parts)]
    for i, start in enumerate(range(0, len(ids), size)):
        rows = list(range(start, min(start + size, len(ids))))
        metrics[i % parts].update(batch_of(model, sae, ids, rows))
    for other in metrics[1:]:
        metrics[0].merge(other)
    restored = Few(sae)
    set_state(restored, get_state(metrics[0]))
    scores = restored.scores(Env(sae, lens=model.lens(**lens)))
    return {s.key: ratio_interval(restored.units(), s).value for s in scores}


def test_a_latent_on_one_logit_has_the_least_sparsity_and_the_kl_by_hand():
    model, sae, ids = world()
    found = measured(model, sae, ids)
    # Removing the latent takes 2 from its own logit, at the ablated position only.
    p = math.exp(2) / (math.exp(2) + V - 1)
    kl = 2 * p + math.log((1 + V - 1) / (math.exp(2) + V - 1))
    assert found["ablation_kl"] == pytest.approx(kl / HORIZON, rel=1e-6)
    assert found["ablation_sparsity"] == pytest.approx(1 / (HORIZON * V), rel=1e-6)
    assert found["random_sparsity"] > 10 * found["ablation_sparsity"]
    assert found["top10_share"] > 0.8
    assert found["coverage"] == 1


def test_a_gaussian_effect_gives_two_over_pi():
    d = 3000
    direction = torch.randn(d, generator=torch.Generator().manual_seed(0))
    model = PlantedModel(torch.eye(d), torch.eye(d), remembers=True)
    W_dec = torch.eye(d)
    W_dec[5] = direction
    firing = Firing([0, 5, 1, 2, 3], 1, 0)
    found = ablate(model.lens(), one_hot_sae(W_dec), 5, [firing], HORIZON, seed=0)
    # The change reaches every later position alike.
    assert found["sparsity"][0] == pytest.approx(2 / math.pi, rel=0.03)
    assert found["random_sparsity"][0] == pytest.approx(2 / math.pi, rel=0.03)
    assert sparsity(torch.randn(16, 50_000, generator=torch.Generator().manual_seed(1))) == pytest.approx(
        2 / math.pi, rel=0.005
    )


def test_a_silent_latent_has_exactly_no_effect():
    model, sae, _ = world(remembers=True)
    found = ablate(
        model.lens(), sae, 7, [Firing([0, 5, 1, 2, 3], 1, 0), Firing([0, 7, 7, 2, 3], 1, 1)], HORIZON, seed=0
    )
    for who in ("", "random_"):
        assert found[f"{who}kl"][0] == 0
        assert found[f"{who}top10"][0] == 0
        assert found[f"{who}sparsity"][0] is None
        assert found[f"{who}kl"][1] > 0


def test_a_divergence_is_the_kl_and_its_largest_parts():
    generator = torch.Generator().manual_seed(0)
    clean, edited = torch.randn(3, 30, generator=generator), torch.randn(3, 30, generator=generator)
    kl, top = divergence(clean, edited)
    p, q = clean.double().softmax(-1), edited.double().softmax(-1)
    assert kl == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-12)
    parts = np.sort((p * (p / q).log() - p + q).numpy(), axis=1)
    assert top == pytest.approx(parts[:, -10:].sum(), rel=1e-12)


def test_batches_merging_lens_batches_and_decoder_scale_change_nothing():
    W_dec = torch.randn(V, V, generator=torch.Generator().manual_seed(2))
    model, sae, ids = world(W_dec, remembers=True)
    whole = measured(model, sae, ids)
    for other in (
        measured(model, sae, ids, size=7),
        measured(model, sae, ids, size=1, parts=2),
        measured(model, sae, ids, batch_size=1),
        measured(model, sae, ids, batch_size=4),
        measured(model, rescaled(sae), ids),
    ):
        assert other.keys() == whole.keys()
        for key, value in whole.items():
            assert other[key] == pytest.approx(value, rel=1e-5), key


def test_the_declared_work_bounds_the_work_done():
    model, sae, ids = world()
    measured(model, sae, ids)
    declared = vars(Few.lens_work(sae.d_sae, ids.shape[1]))
    # Some latents fire less often than the sample takes, and contexts end with the horizon.
    assert all(0.6 * declared[key] < model.work[key] <= declared[key] for key in declared)


@pytest.mark.parametrize("transform", [None, LayerNorm(), TokenScale()])
def test_a_contribution_is_what_the_reconstruction_loses_without_the_latent(transform):
    plain = random_sae(16, 48, k=None, seed=3)
    sae = plain if transform is None else SAE(
        plain.W_enc, plain.W_dec, plain.b_enc, plain.b_dec, plain.activation, True, transform)  # fmt: skip
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(0)) * 3
    z = sae.encode(x).dense()
    latent = int((z > 0).sum(0).argmax())
    without = z.clone()
    without[:, latent] = 0
    expected = sae(x) - sae.decode(type(sae.encode(x)).from_dense(without), x)
    got = contribution(sae, x, latent)
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.count_nonzero(got[z[:, latent] == 0]) == 0
    norm = z[:, latent] * sae.W_dec[latent].norm() * token_scale(sae, x)
    assert torch.allclose(norm, got.norm(dim=-1), atol=1e-4)


def test_states_and_bad_input_are_one_line(tmp_path: Path):
    model, sae, ids = world()
    ids[:, -HORIZON + 1 :] = 39  # fires where nothing follows
    ids[:, :9] = ids[:, :9].clamp_max(20)
    ids[0, 3] = 30  # a single firing
    metric = Few(sae)
    metric.settings = Settings(latents=V, firings=5, fewest=2, horizon=HORIZON)  # type: ignore[misc]
    metric.update(batch_of(model, sae, ids, list(range(len(ids)))))
    metric.scores(Env(sae, lens=model.lens(work=tmp_path)))
    states = metric.details()["states"]
    units = metric.units()
    assert states["too few firings"] == 2
    assert set(units.query("scored == 0").unit_id) == {30, 39}
    assert states["scored"] == len(units) - 2
    with raises(SaebenchError, "effects", "--model"):
        metric.scores(Env(sae))
    silent = Few(sae)
    with raises(SaebenchError, "none of 40 latents"):
        silent.scores(Env(sae, lens=model.lens()))


def test_the_metric_keeps_its_contract():
    class Tiny(Effects):
        settings = Settings(latents=8, firings=3, fewest=1, horizon=3)

    check_metric(Tiny, reads_text=True, env=partial(lens_env, batch_size=3))
    check_metric(Tiny, reads_text=True)


def test_a_run_that_is_killed_among_its_experiments_ends_with_the_same_record(tmp_path: Path):
    arguments = kills.prepare(tmp_path, kills.FEW)
    assert kills.run_killed(arguments, tmp_path / "killed", 1) == 1
    saebench.run(**arguments, results=tmp_path / "whole")
    whole = kills.scores(tmp_path / "whole")
    assert whole[0]
    assert kills.scores(tmp_path / "killed") == whole
