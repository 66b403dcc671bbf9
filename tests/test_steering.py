"""Metric `steering` on a model where the effect of steering is known in closed form."""

from typing import Any

import numpy as np
import pytest
import torch
from saebench.plugins.metrics.steering import collect
from saebench.plugins.metrics.steering.measure import target_tokens
from saebench.plugins.metrics.steering.metric import Steering
from saebench.plugins.metrics.steering.settings import Settings

from saebench.errors import SaebenchError
from saebench.metric import Env, get_state, set_state
from saebench.sae import SAE
from saebench.stats import ratio_interval
from saebench.testing import check_metric
from tests.planted_model import PlantedModel, batch_of, one_hot_sae, rescaled
from tests.raising import raises

# Tokens 1 to N fire latents 1 to N; token i is always followed by token N + i; fillers are random tokens above 2N.
N, V, SIZE = 12, 80, 2.0
SETTINGS = Settings(latents=N, contexts=24, length=5, strengths=(0.25, 0.5, 1.0, 2.0, 3.0, 4.0), fewest=4)


class Small(Steering):
    settings = SETTINGS


def world(seed: int = 0) -> tuple[PlantedModel, SAE, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    bias = torch.randn(V, generator=generator)
    model = PlantedModel(SIZE * torch.eye(V), torch.eye(V), bias=bias)
    ids = torch.randint(2 * N + 1, V, (120, 13), generator=generator)
    fires = torch.randint(1, N + 1, (120, 3), generator=generator)
    ids[:, 5:11:2], ids[:, 6:12:2] = fires, fires + N
    ids[:, 0] = 0
    # Latent i writes the unembedding row of the token that follows it.
    W_dec = torch.eye(V)[(torch.arange(N + 1) + N) * (torch.arange(N + 1) > 0)]
    return model, one_hot_sae(W_dec), ids


def run(
    model: PlantedModel, sae: SAE, ids: torch.Tensor, size: int = 120, parts: int = 1, **lens: Any
) -> tuple[dict, Steering]:
    metrics = [Small(sae) for _ in range(parts)]
    for i, start in enumerate(range(0, len(ids), size)):
        metrics[i % parts].update(batch_of(model, sae, ids, list(range(start, min(start + size, len(ids))))))
    for other in metrics[1:]:
        metrics[0].merge(other)
    restored = Small(sae)
    set_state(restored, get_state(metrics[0]))
    scores = restored.scores(Env(sae, lens=model.lens(**lens)))
    return {s.key: ratio_interval(restored.units(), s) for s in scores}, restored


def probabilities(model: PlantedModel, contexts: list[list[int]], added: torch.Tensor | float) -> torch.Tensor:
    last = torch.tensor([context[-1] for context in contexts])
    return (model.logits(model.embedding[last]).double() + added).softmax(-1)


def test_a_latent_that_writes_a_logit_raises_its_token_alone_by_the_analytic_amount():
    model, sae, ids = world()
    found, metric = run(model, sae, ids)
    choose, score = metric._neutral()
    assert len(choose) == len(score) == SETTINGS.contexts // 2
    assert metric.details()["states"]["scored"] == N
    expected = {}
    for latent in range(1, N + 1):
        unit = torch.zeros(V, dtype=torch.float64)
        unit[N + latent] = 1
        clean = probabilities(model, choose, 0.0)
        within = []
        for f in SETTINGS.strengths:
            steered = probabilities(model, choose, f * SIZE * unit)
            if float((clean * (clean / steered).log()).sum(1).mean()) <= SETTINGS.most_kl:
                within.append(f)
        change = probabilities(model, score, max(within) * SIZE * unit) - probabilities(model, score, 0.0)
        assert float(change[:, N + latent].min()) > 0
        assert float(change[:, torch.arange(V) != N + latent].max()) < 0  # every other token falls
        expected[latent] = (max(within), float(change[:, N + latent].mean()))
    units = metric.units().set_index("unit_id")
    for latent, (strength, effect) in expected.items():
        assert units.strength[latent] == strength
        assert units.effect[latent] == pytest.approx(effect, rel=1e-5)
        assert units.shuffled[latent] < 0
        assert units.reversed_gain[latent] < 0 < units.gain[latent]
    assert found["effect"].value == pytest.approx(np.mean([e for _, e in expected.values()]), rel=1e-5)
    assert found["gain"].value == pytest.approx(found["effect"].value - found["shuffled"].value, rel=1e-9)
    assert found["reversed"].high < 0 < found["gain"].low
    assert found["random_direction"].low < 0 < found["random_direction"].high
    assert found["ceiling"].value is not None
    assert found["coverage"].value == 1
    assert found["kl"].value <= 1.5 * SETTINGS.most_kl


def test_batches_merging_lens_batches_and_decoder_scale_change_nothing():
    model, sae, ids = world()
    whole, _ = run(model, sae, ids)
    for other, _ in (
        run(model, sae, ids, size=7),
        run(model, sae, ids, size=3, parts=2),
        run(model, sae, ids, batch_size=1),
        run(model, sae, ids, batch_size=16),
        run(model, rescaled(sae), ids),
    ):
        assert other.keys() == whole.keys()
        for key, interval in whole.items():
            assert other[key].value == pytest.approx(interval.value, rel=1e-5, abs=1e-9), key


def test_target_tokens_follow_the_latent_and_not_the_language():
    every = np.array([0, 5000, 400, 30, 2, 500])
    own = np.array([0, 300, 60, 20, 1, 0])
    # Token 1 is common everywhere, 3 and 2 are much commoner after the latent, 4 was seen once there, 5 never.
    assert target_tokens(own, every, 3)[:2] == [3, 2]
    assert 1 not in target_tokens(own, every, 20)
    assert 5 not in target_tokens(own, every, 20)
    assert target_tokens(own * 0 + (np.arange(6) == 3) * 20, every, 20) == [3]


def test_the_declared_work_is_the_work_done():
    model, sae, ids = world()
    run(model, sae, ids)
    assert model.work == vars(Small.lens_work(sae.d_sae, ids.shape[1]))


def test_documents_have_one_role():
    roles = collect.role(0, np.arange(4000))
    shares = np.bincount(roles, minlength=3) / 4000
    assert np.allclose(shares, [0.5, 0.25, 0.25], atol=0.04)
    assert (collect.role(1, np.arange(4000)) != roles).mean() > 0.3
    model, sae, ids = world()
    metric = Small(sae)
    metric.update(batch_of(model, sae, ids, list(range(120))))
    chosen = collect.chosen_contexts(metric.contexts, SETTINGS)
    assert set(chosen["role"]) == {collect.CHOOSE, collect.SCORE}
    assert not set(chosen["context"][chosen["role"] == collect.CHOOSE]) & set(
        chosen["context"][chosen["role"] == collect.SCORE]
    )
    assert (collect.role(0, chosen["document"]) == chosen["role"]).all()


def test_states_and_bad_input_are_one_line():
    model, sae, ids = world()
    strong, metric = run(model, SAE(sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec, sae.activation, False), ids)
    with raises(SaebenchError, "steering", "--model"):
        metric.scores(Env(sae))
    metric.settings = Settings(latents=N, contexts=24, length=5, strengths=(1e3, 1e30), fewest=4)  # type: ignore[misc]
    with raises(SaebenchError, "1000.0", "0.5 nats"):
        metric.scores(Env(sae, lens=model.lens()))
    metric.settings = Settings(latents=N, contexts=24, length=5, fewest=10_000)  # type: ignore[misc]
    with raises(SaebenchError, "0 of 12", 10_000):
        metric.scores(Env(sae, lens=model.lens()))
    metric.settings = Settings(latents=N, contexts=24, length=50)  # type: ignore[misc]
    empty = Small(sae)
    with raises(SaebenchError, "neutral contexts"):
        empty.scores(Env(sae, lens=model.lens()))
    assert strong["coverage"].value == 1


def test_the_metric_keeps_its_contract(monkeypatch):
    monkeypatch.setattr(
        collect, "role", lambda seed, document: (document % 3).astype(np.int8)
    )  # there are four documents

    class Tiny(Steering):
        settings = Settings(latents=8, contexts=8, length=4, strengths=(0.001, 0.01, 0.5), fewest=1)

    check_metric(Tiny)
