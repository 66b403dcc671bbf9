"""Faults that a sceptic found by hand: each once gave a wrong or misleading number."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from saebench.plugins.comparisons.stability import Stability
from saebench.plugins.metrics.code_length import CodeLength
from saebench.plugins.metrics.fidelity import Fidelity

from saebench.board.leaderboard import boards
from saebench.comparison import Shared
from saebench.errors import UsageError
from saebench.forward.guard import Guard, SAEGuard
from saebench.metric import Batch, Env
from saebench.registry import installed
from saebench.results import Record
from saebench.running.settings import configure
from saebench.stats import Ratio, ratio_interval, standing
from saebench.testing import SyntheticText, identity_sae, random_sae
from tests.raising import raises
from tests.synthetic import Make, make_record

SHARE = Ratio("hit", "one", within=(0.0, 1.0))


def hits(successes: int, n: int, masked: int = 0) -> pd.DataFrame:
    one = np.r_[np.ones(n), np.zeros(masked)]
    hit = np.r_[np.ones(successes), np.zeros(n - successes + masked)]
    return pd.DataFrame({"unit_id": range(n + masked), "cluster_id": range(n + masked), "hit": hit, "one": one})


@pytest.mark.parametrize("n", [20, 100])
def test_a_failure_never_raises_the_lower_end(n: int) -> None:
    lows = [ratio_interval(hits(k, n), SHARE).low or 0.0 for k in (n - 2, n - 1, n)]
    assert lows == sorted(lows)


def test_units_without_weight_do_not_hide_an_exact_interval() -> None:
    assert ratio_interval(hits(18, 18, masked=2), SHARE).low == pytest.approx(ratio_interval(hits(18, 18), SHARE).low)


@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-6, 5e-6])
def test_near_copies_of_the_best_move_no_rank(noise: float) -> None:
    random = np.random.default_rng(0)
    base = random.normal(1, 0.1, 40)

    def sae(shift: float, jitter: float, seed: int) -> pd.DataFrame:
        value = base + shift + 0.01 * np.random.default_rng(seed).normal(size=40)
        value = value * (1 + jitter * random.normal(size=40))
        return pd.DataFrame({"unit_id": range(40), "cluster_id": range(40), "hit": value, "one": 1.0})

    score = Ratio("hit", "one")
    saes = [sae(shift, 0.0, i) for i, shift in enumerate((0.4, 0.3, 0.2, 0.1))]
    plain, _ = standing(saes, score, "higher")
    more, _ = standing([*saes, *(sae(0.4, noise, 0) for _ in range(60))], score, "higher")
    assert more[:4] == plain == [1, 2, 3, 4]


def test_a_null_is_weighted_as_its_pairs_are() -> None:
    saes = [random_sae(32, width, seed=i) for i, width in enumerate((16, 16, 512, 512))]
    compared = Stability().compare(saes, Shared())
    [score] = [s for s in compared.scores if s.key == "calibrated"]
    assert ratio_interval(compared.units, score).value == pytest.approx(0, abs=0.04)


def values(metric_class: type, x: torch.Tensor, norm: float | None = None) -> dict[str, float]:
    sae = replace(identity_sae(x.shape[-1]))
    scored = torch.ones(x.shape[:2], dtype=torch.bool)
    rows, latents = np.arange(len(x)), sae.encode(x)
    metric = metric_class(sae)
    metric.update(
        Batch(scored.long(), ~scored, scored, rows, rows, torch.arange(x.shape[1]), x.mean((0, 1)), x, latents,
              sae.decode(latents, x), _x_read=x, typical_norm=norm)
    )  # fmt: skip
    scores, units = metric.scores(Env(sae)), metric.units()
    return {s.key: ratio_interval(units, s).value for s in scores if s.num is not None and s.at is None}


def test_the_unit_of_the_activations_changes_no_code_length() -> None:
    x = torch.randn(30, 40, 8, generator=torch.Generator().manual_seed(0)).abs()
    found = [values(CodeLength, factor * x, factor * float(x.norm(dim=-1).median())) for factor in (1.0, 1e-3, 1e5)]
    assert found[0]["bits_at_80"] > 1
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-3)


@pytest.mark.parametrize("token", [0.0, 0.5])
def test_a_constant_token_does_not_swamp_the_means(token: float) -> None:
    x = torch.randn(6, 9, 16, generator=torch.Generator().manual_seed(0))
    x[5, 2] = token
    found = values(Fidelity, x)
    assert found["normalized_mse"] < 1e-6
    assert found["l2_ratio"] == pytest.approx(1, abs=0.03)


def test_shape_and_dtype_of_a_batch_are_restored() -> None:
    batch = SyntheticText().batch(random_sae(16, 48), range(4))
    x = batch.x.clone()
    guard = Guard(batch)
    batch.document_id.shape = (2, 2)
    batch.x.data = batch.x.data.half()
    assert guard.restore() is not None
    assert batch.document_id.shape == (4,)
    assert torch.equal(batch.x, x)


def test_a_single_row_written_behind_torchs_back_is_undone() -> None:
    sae = random_sae(128, 512)
    before = sae.W_dec.clone()
    guard = SAEGuard(sae, lambda: random_sae(128, 512))
    for harm in (lambda: sae.W_dec.numpy().__setitem__(1, 0), lambda: sae.W_dec.data[3].mul_(5)):
        harm()
        assert guard.restore() is not None
        assert torch.equal(sae.W_dec, before)


@pytest.mark.parametrize(
    ("metric", "setting", "value"),
    [("effects", "latents", -3), ("effects", "horizon", 0), ("steering", "strengths", []), ("steering", "most_kl", -1.0),
     ("steering", "strengths", [float("inf")]), ("steering", "contexts", 1)],
)  # fmt: skip
def test_settings_that_no_measurement_has_are_refused(metric: str, setting: str, value: object) -> None:
    with raises(UsageError, metric, setting):
        configure(installed().metrics[metric], {setting: value})


def test_one_damaged_record_costs_itself_its_rank(tmp_path: Path) -> None:
    """Declared otherwise, cut units, all weight in one unit: the others keep their ranks, and a note names the culprit."""
    make: Make = partial(make_record, tmp_path)
    honest = [make(f"sae-{i}", shift=0.05 * i, seed=i) for i in range(4)]
    [plain] = boards(honest)
    column = next(c for c in plain.columns if c.key == "explained_variance")
    wanted = {row.name: row.cells[column].rank for row in plain.rows}
    assert sorted(filter(None, wanted.values()))[0] == 1
    for harm in (declare_otherwise, cut_units):
        bad = make("aaa", shift=0.0, seed=9)
        harm(bad)
        [board] = boards([bad, *honest])
        assert {row.name: row.cells[column].rank for row in board.rows if row.name != "aaa"} == wanted
        assert next(row for row in board.rows if row.name == "aaa").cells[column].rank is None
        assert any("aaa" in note for note in board.notes)


def declare_otherwise(record: Record) -> None:
    for row in record.scores:
        row["scale"] = row["scale"] * 1.0000001


def cut_units(record: Record) -> None:
    whole = record.units
    record.units = lambda metric: whole(metric).head(5)  # type: ignore[method-assign,union-attr]
