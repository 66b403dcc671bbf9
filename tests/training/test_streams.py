"""Every random use draws from a stream of its own: nothing equals another's draw at the same seed."""

import numpy as np
import pytest
import torch
from saebench.plugins.metrics.probing.random_sae import RandomSAE
from torch.nn.functional import normalize

from saebench.arithmetic.dictionary import Dictionary
from saebench.testing import random_sae
from saebench.training.baselines import RandomWeights
from saebench.training.text import context_order
from saebench.training.toy import ToyNetwork

D, WIDTH = 64, 256


def _floor(name: str, seed: int) -> torch.Tensor:
    if name == "trained baseline":
        return RandomWeights(D, WIDTH, 4, "cpu", seed).directions
    if name == "probing":
        return RandomSAE(D, WIDTH, torch.device("cpu"), seed).directions
    if name == "testing":
        return random_sae(D, WIDTH, seed=seed).W_dec
    if name == "toy":
        return ToyNetwork.random(WIDTH, D, seed).directions
    return torch.randn(WIDTH, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("floor", ["trained baseline", "probing", "testing", "toy", "bare seed"])
def test_an_initial_dictionary_is_no_floor(floor: str, seed: int) -> None:
    """Rows i and i are as unrelated as random unit vectors: mean cosine 0 ± 1/√(d·width), none near 1."""
    first = Dictionary(D, WIDTH, seed=seed, dtype=torch.float32, encoder_norm=1.0, extra={}, state={}).W_dec.detach()
    other = normalize(_floor(floor, seed), dim=1)
    cosine = (first * (other if other.shape == first.shape else other.T)).sum(1)
    assert abs(float(cosine.mean())) < 5 / (D * WIDTH) ** 0.5
    assert float(cosine.abs().max()) < 6 / D**0.5


def test_orders_are_unrelated() -> None:
    """Permutations agree at about one place; an order drawn from a bare seed is another one too."""
    first = context_order(5000, 0, 0)
    others = [context_order(5000, 0, 1), context_order(5000, 1, 0), np.random.default_rng((0, 0)).permutation(5000)]
    assert all((first == other).sum() < 10 for other in others)
