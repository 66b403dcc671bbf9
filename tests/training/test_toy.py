"""The toy: planted features are found, and the figures that say so are right."""

import numpy as np
import pytest
import torch

from saebench.registry import installed
from saebench.training.toy import ToyNetwork, compare, toy


@pytest.mark.parametrize("seed", range(5))
def test_topk_recovers_planted_features(seed):
    found = toy(installed().recipes["topk"], seed=seed)
    assert found.mean_max_cosine >= 0.95


def test_the_figures_are_right():
    planted = torch.eye(4)
    swapped = torch.tensor([[0.0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0.6, 0.8], [0.5, 0.5, 0.5, 0.5]])
    found = compare(swapped, planted)
    assert found.mean_max_cosine == pytest.approx((1 + 1 + 1 + 0.8) / 4)
    assert found.mcc == pytest.approx(0.95)
    assert torch.allclose(found.cosine[:4].diagonal(), torch.tensor([1, 1, 1, 0.8]))
    # Two features that share one latent: mean max cosine counts it twice, the matching does not.
    shared = compare(torch.tensor([[0.8, 0.6], [-1.0, 0.0]]), torch.eye(2))
    assert shared.mean_max_cosine == pytest.approx(0.7)
    assert shared.mcc == pytest.approx(0.4)


def test_the_network_fires_as_it_says():
    network = ToyNetwork(torch.eye(128))
    x = network.sample(20_000, torch.Generator().manual_seed(0))
    fired = (x > 0).double()
    assert float(fired.sum(1).mean()) == pytest.approx(network.active, rel=0.03)
    together = np.corrcoef(fired[:, :16].T.numpy())
    assert together[0, 1:8].mean() > 0.1 > abs(together[0, 8:]).mean()


def test_there_is_a_picture(tmp_path):
    compare(torch.eye(8), torch.eye(8)).figure().savefig(tmp_path / "toy.png")
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")
