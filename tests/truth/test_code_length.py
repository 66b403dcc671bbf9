"""The metric `code_length` against sources whose entropy is known."""

from dataclasses import replace
from math import log2

import numpy as np
import pytest
import torch
from saebench.plugins.metrics.code_length import CodeLength, code_bits, gaussian_bits, held_out

from saebench.metric import Batch, Env
from saebench.sae import SAE, NoTransform, ReLU
from saebench.stats import ratio_interval
from saebench.testing import check_metric, identity_sae, random_sae


def h(p: float) -> float:
    return -p * log2(p) - (1 - p) * log2(1 - p)


def split(contexts: int) -> np.ndarray:
    return held_out(np.arange(contexts))


def source(n: int, p: float, tokens: int, levels: int = 4, seed: int = 0) -> np.ndarray:
    """[tokens, n] bins: each fires with probability p, on one of several equal levels."""
    random = np.random.default_rng(seed)
    return (random.random((tokens, n)) < p) * random.integers(1, levels + 1, (tokens, n))


def cost(z: np.ndarray, per_context: int = 100) -> float:
    """Bits per token of the held-out half of a matrix of bins."""
    contexts = len(z) // per_context
    held, tokens = split(contexts), np.full(contexts, float(per_context))
    token, latent = z.nonzero()
    bits = code_bits(z[token, latent], latent, token // per_context, held, tokens, z.shape[1])
    return float(bits[held].sum() / tokens[held].sum())


def test_independent_latents_with_four_equal_levels_cost_their_entropy() -> None:
    """n(h(p) + 2p) bits, within 1 %."""
    for n, p in ((20, 0.1), (8, 0.3)):
        assert cost(source(n, p, 40_000)) == pytest.approx(n * (h(p) + 2 * p), rel=0.01)


def test_a_latent_split_into_two_exclusive_halves_costs_more() -> None:
    whole = source(10, 0.2, 40_000)
    half = np.random.default_rng(1).random(whole.shape) < 0.5
    split_up = cost(np.concatenate([whole * half, whole * ~half], axis=1))
    assert split_up == pytest.approx(20 * h(0.1) + 10 * 0.2 * 2, rel=0.01)
    assert split_up > 1.15 * cost(whole)


def test_the_code_is_a_code() -> None:
    """Kraft: over every possible bin of one firing, the probabilities sum to at most 1 (and nearly 1)."""
    base = source(1, 0.5, 2000)
    contexts = 21
    total = 0.0
    for value in [b for b in range(-2000, 2001) if b]:
        z = np.concatenate([base, np.full((100, 1), value)])[: contexts * 100]
        held = np.arange(contexts) == contexts - 1
        token, latent = z[:-99].nonzero()
        bits = code_bits(z[token, latent], latent, np.minimum(token // 100, 20), held, np.full(contexts, 100.0), 1)
        fires = -log2((np.count_nonzero(base) + 0.5) / 2001)
        silent = -log2(1 - (np.count_nonzero(base) + 0.5) / 2001)
        total += 2.0 ** -(bits[-1] - 99 * silent - fires)
    assert 0.99 < total <= 1 + 1e-9


def test_gaussian_bits_are_half_a_bit_per_doubling() -> None:
    """White noise at distortion D: ½ log2(1/D) bits a dimension; a silent dimension costs nothing."""
    assert gaussian_bits(torch.eye(8, dtype=torch.float64), 0.75) == pytest.approx(8 * 0.5 * log2(4), rel=1e-6)
    some = torch.diag(torch.tensor([1.0, 1, 1, 1, 0, 0], dtype=torch.float64))
    assert gaussian_bits(some, 0.75) == pytest.approx(4, rel=1e-6)


def values(sae: SAE, x: torch.Tensor, parts: int = 1) -> dict[tuple[str, float | None], float]:
    metric = CodeLength(sae)
    for rows in np.array_split(np.arange(len(x)), parts):
        some = x[rows]
        scored = torch.ones(some.shape[:2], dtype=torch.bool)
        ids, at = torch.zeros(some.shape[:2], dtype=torch.long), torch.arange(some.shape[1])
        latents = sae.encode(some)
        metric.update(Batch(ids, ~scored, scored, rows, rows, at, _x=some, _x_read=some, _latents=latents))
    scores, units = metric.scores(Env(sae)), metric.units()
    return {(s.key, s.at): float(s.value) if s.num is None else ratio_interval(units, s).value for s in scores}  # type: ignore[arg-type]


def gaussian(contexts: int = 40, d: int = 12) -> torch.Tensor:
    scale = torch.logspace(1, 0, d)
    return torch.randn(contexts, 50, d, generator=torch.Generator().manual_seed(3)) * scale


def test_decoder_scale_and_batches_change_nothing() -> None:
    sae = replace(random_sae(12, 40), activation=ReLU())
    scale = 2.0 ** torch.arange(-20, 20) ** 1.0
    rescaled = replace(sae, W_enc=sae.W_enc / scale, b_enc=sae.b_enc / scale, W_dec=sae.W_dec * scale[:, None])
    x = gaussian()
    plain = values(sae, x)
    assert values(rescaled, x, parts=7) == pytest.approx(plain, rel=1e-4)


def test_the_identity_costs_more_than_the_gaussian_bound_and_reaches_every_target() -> None:
    """Positive and negative halves of every coordinate: a perfect code without sparsity."""
    eye = torch.eye(12)
    both = SAE(
        torch.cat([eye, -eye], 1),
        torch.cat([eye, -eye]),
        torch.zeros(24),
        torch.zeros(12),
        ReLU(),
        False,
        NoTransform(),
    )
    got = values(both, gaussian())
    assert got["bits_at_75", None] < got["bits_at_80", None] < got["bits_at_85", None]
    assert got["gaussian_at_80", None] < got["bits_at_80", None] < got["gaussian_at_80", None] + 24


def test_a_target_that_is_not_reached_gives_no_number() -> None:
    got = values(random_sae(12, 9), gaussian())
    assert ("bits_at_85", None) not in got


def test_it_keeps_the_contract() -> None:
    check_metric(CodeLength)


def test_an_identity_sae_explains_everything_at_the_finest_step() -> None:
    got = values(replace(identity_sae(12)), gaussian().abs())
    assert max(at for key, at in got if key == "bits" and at is not None) > 0.999
