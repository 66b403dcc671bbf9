"""The comparison `stability` on dictionaries whose right answer is known."""

from dataclasses import replace

import pytest
import torch
from saebench.plugins.comparisons import stability
from saebench.plugins.comparisons.stability import Stability, match

from saebench.comparison import Compared, Shared
from saebench.errors import UsageError
from saebench.sae import SAE, ReLU
from saebench.stats import ratio_interval
from saebench.testing import random_sae
from tests.raising import raises


def values(compared: Compared) -> dict[str, float]:
    return {
        s.key: float(s.value) if s.num is None else ratio_interval(compared.units, s).value for s in compared.scores
    }  # type: ignore[arg-type]


def shuffled(sae: SAE, seed: int = 1) -> SAE:
    """The same function: latents in another order, each decoder row rescaled and its encoder with it."""
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(sae.d_sae, generator=random)
    scale = torch.exp(torch.randn(sae.d_sae, generator=random))
    return replace(
        sae,
        W_enc=(sae.W_enc * scale)[:, order],
        b_enc=(sae.b_enc * scale)[order],
        W_dec=(sae.W_dec / scale[:, None])[order],
    )


def test_a_permuted_and_rescaled_copy_scores_one() -> None:
    sae = replace(random_sae(24, 96), activation=ReLU())
    x = torch.randn(400, 24, generator=torch.Generator().manual_seed(0))
    got = values(Stability().compare([sae, shuffled(sae)], Shared(x)))
    for key in ("pw_mcc", "calibrated", "shared", "agreement"):
        assert got[key] == pytest.approx(1.0, abs=1e-5), key


def test_unrelated_rows_score_nothing_above_their_null() -> None:
    for seed in (1, 2, 3):
        got = values(
            Stability().compare([random_sae(32, 256, seed=seed), random_sae(32, 256, seed=seed + 50)], Shared())
        )
        assert got["calibrated"] == pytest.approx(0.0, abs=0.02)
        assert got["null"] > 0.2
        assert got["shared"] < 0.05


def test_unrelated_rows_with_a_common_mean_and_covariance_score_nothing_either() -> None:
    """Where an isotropic null would call them related."""
    random = torch.Generator().manual_seed(0)
    skew = torch.diag(torch.logspace(0, -2, 32))
    rows = [torch.randn(256, 32, generator=random) @ skew + 0.05 for _ in range(2)]
    saes = [replace(random_sae(32, 256, seed=i), W_dec=r) for i, r in enumerate(rows)]
    got = values(Stability().compare(saes, Shared()))
    isotropic = values(Stability().compare([random_sae(32, 256, seed=7), random_sae(32, 256, seed=8)], Shared()))[
        "null"
    ]
    assert got["calibrated"] < 0.1
    assert (got["pw_mcc"] - isotropic) / (1 - isotropic) > 0.3


def test_half_the_latents_replaced_scores_one_half() -> None:
    a, other = random_sae(64, 256, seed=1), random_sae(64, 256, seed=2)
    half = replace(
        a,
        W_dec=torch.cat([a.W_dec[:128], other.W_dec[128:]]),
        W_enc=torch.cat([a.W_enc[:, :128], other.W_enc[:, 128:]], 1),
    )
    got = values(Stability().compare([a, shuffled(half)], Shared()))
    assert got["shared"] == pytest.approx(0.5, abs=0.01)
    assert got["calibrated"] == pytest.approx(0.5, abs=0.05)


def test_three_saes_are_three_pairs_and_the_mean_is_over_all_their_latents() -> None:
    saes = [random_sae(16, 48, seed=s) for s in (1, 2, 3)]
    together = Stability().compare(saes, Shared())
    assert [d["saes"] for d in together.details["pairs"]] == [[0, 1], [0, 2], [1, 2]]
    pairs = [values(Stability().compare([saes[i], saes[j]], Shared()))["pw_mcc"] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert values(together)["pw_mcc"] == pytest.approx(sum(pairs) / 3)
    assert together.units.unit_id.is_unique


def test_dead_latents_are_left_out_where_activations_show_them() -> None:
    sae = random_sae(16, 48)
    dead = replace(sae, b_enc=torch.where(torch.arange(48) < 12, -1e6, sae.b_enc))
    x = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    [pair] = Stability().compare([sae, dead], Shared(x)).details["pairs"]
    assert pair["live"][1] <= 36
    assert sum(row["latents"] for row in pair["by_frequency"]) == min(pair["live"])


def test_the_optimal_matching_is_no_worse_than_greedy_and_the_large_one_agrees_on_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(60, 8, generator=random), torch.randn(60, 8, generator=random)
    cosines = torch.nn.functional.normalize(a.double(), dim=1) @ torch.nn.functional.normalize(b.double(), dim=1).T
    left, total = cosines.clone(), 0.0
    for _ in range(60):
        best = int(left.argmax())
        total += float(left[best // 60, best % 60])
        left[best // 60], left[:, best % 60] = -9, -9
    assert float(match(a, b).cosine.sum()) >= total
    monkeypatch.setattr(stability, "_HUNGARIAN", 10)
    order = torch.randperm(60, generator=random)
    assert float(match(a, a[order]).cosine.mean()) == pytest.approx(1.0)
    assert len(match(a, a[order]).a) == 60


def test_what_cannot_be_compared_is_refused() -> None:
    sae = random_sae(16, 48)
    with raises(UsageError, "two or more"):
        Stability().compare([sae], Shared())
    with raises(UsageError, "16", "24"):
        Stability().compare([sae, random_sae(24, 48)], Shared())
    named = [replace(sae, metadata=replace(sae.metadata, model=m)) for m in ("a-model", "another")]
    with raises(UsageError, "a-model", "another"):
        Stability().compare(named, Shared())
    silent = replace(sae, b_enc=torch.full((48,), -1e6))
    with raises(UsageError, "live"):
        Stability().compare([sae, silent], Shared(torch.randn(50, 16)))
