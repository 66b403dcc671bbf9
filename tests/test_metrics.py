"""Built-in metrics against independent float64 computations, and against their own contract."""

from math import comb

import numpy as np
import pandas as pd
import pytest
import torch
from saebench.plugins.metrics.fidelity import Fidelity
from saebench.plugins.metrics.geometry import Geometry, effective_rank, nearest_cosine
from saebench.plugins.metrics.probing.metric import Probing
from saebench.plugins.metrics.sparsity import Sparsity

from saebench.metric import Batch, Env, Metric, Rows, Score
from saebench.sae import SAE
from saebench.testing import SyntheticText, check_metric, identity_sae, random_sae
from tests.raising import raises


def test_fidelity_keeps_the_contract():
    exact = {
        "explained_variance": 1,
        "mse": 0,
        "cosine": 1,
        "l2_ratio": 1,
        "relative_reconstruction_bias": 1,
        "normalized_mse": 0,
    }
    check_metric(
        Fidelity, identity=exact, mean_predictor={"explained_variance": 0}, reads_outliers=("explained_variance_all",)
    )


def test_sparsity_keeps_the_contract():
    check_metric(Sparsity, mean_predictor={"l0": 0, "l1": 0, "dead_fraction": 1, "dense_fraction": 0, "l0_sd": 0})


def test_geometry_keeps_the_contract():
    # The norms are those of the weights as they are.
    check_metric(Geometry, reads_scale=("decoder_norm", "decoder_norm_min", "decoder_norm_max"))


def test_probing_keeps_the_contract():
    check_metric(Probing)


def test_fidelity_equals_ten_lines_of_float64():
    text, sae = SyntheticText(), random_sae(16, 48)
    got = text.values(Fidelity, sae, [list(range(12))])
    keep = text.scored.numpy()
    x = text.x.double().numpy()
    xh = sae(text.x).double().numpy()

    def ev(mask: np.ndarray) -> float:
        return 1 - ((x - xh)[mask] ** 2).sum() / ((x[mask] - x[mask].mean(0)) ** 2).sum()

    a, b = x[keep], xh[keep]
    na, nb = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    token_sd = a.std(1, ddof=1, keepdims=True)
    expected = {
        "explained_variance": ev(keep),
        "explained_variance_all": ev(~text.special.numpy()),
        "mse": ((a - b) ** 2).sum(1).mean(),
        "cosine": ((a * b).sum(1) / na / nb).mean(),
        "l2_ratio": (nb / na).mean(),
        "relative_reconstruction_bias": (nb**2).mean() / (a * b).sum(1).mean(),
        "normalized_mse": (((a - b) / token_sd) ** 2).mean(),
    }
    for key, value in expected.items():
        assert got[key, None] == pytest.approx(value, rel=1e-6), key


def test_losses_are_averaged_over_predictions():
    text, sae = SyntheticText(), random_sae(16, 48)
    got = text.values(Fidelity, sae, [list(range(12))])
    keep = text.scored.clone()
    keep[:, -1] = False
    clean, spliced, zero, mean = (text.losses[i].double()[keep].mean().item() for i in range(4))
    assert got["ce_clean", None] == pytest.approx(clean, rel=1e-7)
    assert got["ce_increase", None] == pytest.approx(spliced - clean, rel=1e-6)
    assert got["loss_recovered_zero", None] == pytest.approx((zero - spliced) / (zero - clean), rel=1e-6)
    assert got["loss_recovered_mean", None] == pytest.approx((mean - spliced) / (mean - clean), rel=1e-6)
    assert got["kl", None] == pytest.approx(text.losses[4].double()[text.scored].mean().item(), rel=1e-7)


def test_sparsity_equals_brute_force():
    text, sae = SyntheticText(contexts=12), random_sae(16, 48, k=None)
    got = text.values(Sparsity, sae, [[0, 1, 2], list(range(3, 12))])
    z = sae.encode(text.x).dense().double().numpy()
    rows = z[text.scored.numpy()]
    l0 = (rows != 0).sum(1)
    assert got["l0", None] == pytest.approx(l0.mean())
    assert got["l0_sd", None] == pytest.approx(l0.std())
    assert got["l0_quantile", 0.5] == np.quantile(l0, 0.5, method="inverted_cdf")
    assert got["l0_quantile", 0.95] == np.quantile(l0, 0.95, method="inverted_cdf")
    norms = sae.W_dec.double().norm(dim=1).numpy()
    assert got["l1", None] == pytest.approx((np.abs(rows) * norms).sum(1).mean())
    density = (rows != 0).mean(0)
    assert got["dead_fraction", None] == (density == 0).mean()
    assert got["dense_fraction", None] == (density > 0.1).mean()
    histogram = sum(v for (key, _), v in got.items() if key == "density_histogram")
    assert histogram == pytest.approx(1 - got["dead_fraction", None])


def test_dead_curve_is_the_exact_expectation_over_contexts():
    text, sae = SyntheticText(contexts=6, length=3), random_sae(16, 48, k=1)
    metric = Sparsity(sae)
    metric.update(text.batch(sae, range(6)))
    fires = (sae.encode(text.x).dense().numpy() != 0) & text.scored.numpy()[..., None]
    per_context = fires.any(1).sum(0)  # contexts in which each latent fired
    tokens = int(text.scored.sum())
    for seen, dead in metric._dead_curve(tokens):
        m = round(seen / tokens * 6)
        expected = np.mean([comb(6 - int(c), m) / comb(6, m) for c in per_context])
        assert dead == pytest.approx(expected, abs=1e-12)
    assert metric._dead_curve(tokens)[-1][1] == pytest.approx((per_context == 0).mean(), abs=1e-12)


def test_signed_latents_fire():
    """z < 0 counts as firing: z ≠ 0, not z > 0."""
    from saebench.sae import Latents

    latents = Latents.from_dense(torch.tensor([[0.0, -2.0, 1.0]]))
    assert latents.counts().tolist() == [2]


def test_geometry_equals_numpy():
    sae = random_sae(16, 48)
    W = sae.W_dec.double().numpy()
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    assert np.allclose(nearest_cosine(sae.W_dec, chunk_elements=100).numpy(), cosine.max(1), atol=1e-6)
    s = np.linalg.svd(unit, compute_uv=False)
    p = s / s.sum()
    assert effective_rank(sae.W_dec) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_duplicates_and_rank_of_a_known_dictionary():
    sae = identity_sae(8)
    assert effective_rank(sae.W_dec) == pytest.approx(8)
    assert nearest_cosine(sae.W_dec).max() == pytest.approx(0)
    doubled = torch.cat([torch.eye(8), torch.eye(8)])
    assert nearest_cosine(doubled).min() == pytest.approx(1)


class _Counting(Metric):
    """Sums over scored tokens, divided by the number of all tokens of each context."""

    name = "counting"
    needs = frozenset({"latents"})

    def __init__(self, sae: SAE) -> None:
        self.rows = Rows()

    def update(self, batch: Batch) -> None:
        scored = batch.latents.select(batch.scored)
        counts = torch.zeros(batch.scored.shape, dtype=torch.float64)
        counts[batch.scored] = scored.counts().double()
        self.rows.add(batch, fired=batch.per_context(counts), tokens=self.tokens(batch))

    def tokens(self, batch: Batch) -> np.ndarray:
        return np.full(len(batch.scored), float(batch.scored.shape[1]))

    def merge(self, other: "_Counting") -> None:
        self.rows.merge(other.rows)

    def units(self) -> pd.DataFrame:
        return self.rows.frame()

    def scores(self, env: Env) -> list[Score]:
        return [Score.ratio("fired", "fired", "tokens")]


class _NotSpecial(_Counting):
    """Divides by the tokens that are not special, scored or not."""

    def tokens(self, batch: Batch) -> np.ndarray:
        return (~batch.special).sum(1).double().numpy()


class _Right(_Counting):
    def tokens(self, batch: Batch) -> np.ndarray:
        return batch.scored.sum(1).double().numpy()


class _Blind(_Right):
    """Reads the text and nothing of the SAE."""

    def update(self, batch: Batch) -> None:
        mean = batch.per_context(batch.token_ids.double())
        self.rows.add(batch, fired=mean, tokens=self.tokens(batch))


def test_check_metric_finds_metrics_that_count_unscored_tokens_or_ignore_the_sae():
    check_metric(_Right)
    for faulty in (_Counting, _NotSpecial):
        with raises(AssertionError, "'fired'"):
            check_metric(faulty)
    with raises(AssertionError, "ignores the SAE"):
        check_metric(_Blind)
