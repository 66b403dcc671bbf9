"""The audit on metrics whose card is known: noise, the truth itself, and scores that depend on the metric's seed."""

import runpy
import shutil
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from saebench.plugins.metrics.planted.metric import Planted

from saebench import SAE, Batch, Env, Metric, Score
from saebench.audit.audit import AuditRequest, Size, audit
from saebench.audit.degrade import degraded_copies
from saebench.board.cards import card_notes
from saebench.cli import main
from saebench.errors import UsageError
from saebench.loading.checkpoint import save_sae
from saebench.registry import installed
from saebench.reliability import Card, ScoreCard, read_cards
from saebench.report import Board, Column
from saebench.running.reporting import Silent
from saebench.testing import random_sae
from tests.raising import check_message, raises

PLANTED = """
name = "tiny"
version = 1
metrics = ["planted", "fidelity"]
[planted]
features = 40
d = 16
[samples]
contexts = 40
length = 64
"""
PANEL = """
planted = "{planted}"
tokens = 3200
batch_size = 64
[[saes]]
recipe = ["topk", "batchtopk", "jumprelu"]
width = 24
k = [2, 4]
seed = [0, 1, 2]
lr = 0.02
[[saes]]
name = "long"
recipe = "topk"
width = 24
k = 2
seed = 3
lr = 0.02
snapshots = [0.02, 0.1, 0.3]
[[saes]]
recipe = "random"
width = 24
k = [2, 4]
"""


class Noise(Metric):
    """Standard normal numbers that depend on the SAE and the context, and on nothing that matters."""

    name = "noise"
    needs = frozenset({"x"})
    seeded = True

    def __init__(self, sae: SAE) -> None:
        self._key = int(sae.sha256()[:12], 16)
        self.rows: list[list[float]] = []

    def update(self, batch: Batch) -> None:
        for context in batch.context_id:
            draw = np.random.default_rng([self._key, int(context), batch.seed]).normal(10, 1)
            self.rows.append([float(context), float(draw)])

    def merge(self, other: Self) -> None:
        self.rows += other.rows

    def units(self) -> pd.DataFrame:
        ids, values = np.array(sorted(self.rows)).T
        return pd.DataFrame({"unit_id": ids.astype(int), "cluster_id": ids.astype(int), "draw": values, "one": 1.0})

    def scores(self, env: Env) -> list[Score]:
        return [Score.ratio("noise", "draw", "one", direction="higher")]


class Mirror(Planted):
    """The planted F1 under another name."""

    name = "mirror"
    truth = None


class Quiet:
    """Receives the progress of training and shows none."""

    def message(self, text: str) -> None: ...
    def stepped(self, step: int) -> None: ...

    def capturing(self, done: int, total: int) -> None: ...
    def begin(self, steps: int, done: int) -> None: ...
    def progress(self, step: int, tokens_per_second: float, lines: list[dict[str, Any]]) -> None: ...
    def end(self) -> None: ...
    def logged(self, folder: Any) -> None: ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted model and the training file of its panel."""
    found = tmp_path_factory.mktemp("audit")
    (found / "tiny.toml").write_text(PLANTED)
    (found / "panel.toml").write_text(PANEL.format(planted=found / "tiny.toml"))
    return found


def cards(folder: Path, *metrics: str, seed: int = 0) -> dict[str, Card]:
    """The cards of metrics on the tiny panel, whose SAEs and records are kept between tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEBENCH_CACHE", str(folder / "cache"))
        patch.chdir(folder)  # where no SAE of a language model is found
        for metric in (Noise, Mirror):
            patch.setitem(installed().metrics, metric.name, metric)
        request = AuditRequest(
            metrics, seed=seed, results=folder / "results", panel=folder / "panel.toml", size=Size(None, None)
        )
        return {card.metric: card for card in audit(request, Silent(), Quiet())}


def score(card: Card, key: str) -> ScoreCard:
    return next(score for score in card.scores if score.key == key)


def test_noise_tells_nothing_apart_and_knows_no_truth(folder: Path) -> None:
    found = score(cards(folder, "noise")["noise"], "noise")
    assert found.pairs == 6
    assert found.discriminability is not None
    assert found.discriminability <= 0.05
    assert found.degraded is not None
    assert found.degraded <= 0.05
    assert found.ladder == "none"
    assert found.truth is not None
    assert abs(found.truth) < 0.3
    # The mean of 40 standard normals around 10, drawn anew for every seed and SAE.
    assert found.reseed_cv == pytest.approx(0.1 / np.sqrt(40), rel=1.0)
    assert found.smallest_difference == pytest.approx(2.02 * np.sqrt(2 / 40), rel=0.35)
    assert found.seed_sd == pytest.approx(1 / np.sqrt(40), rel=0.6)


def test_the_truth_agrees_with_itself(folder: Path) -> None:
    found = score(cards(folder, "mirror")["mirror"], "f1")
    assert found.truth == pytest.approx(1.0)
    assert found.truth_matched == pytest.approx(1.0)
    assert found.reseed_cv is None
    assert "randomness" in found.missing["reseed_cv"]


def test_explained_variance_falls_with_noise_and_rises_with_training(folder: Path) -> None:
    found = score(cards(folder, "fidelity")["fidelity"], "explained_variance")
    assert found.ladder in ("noise-2", "noise-5", "noise-10")
    assert found.monotone == pytest.approx(1.0)
    assert found.copies == 16  # three recipes with five copies, and the under-trained snapshot
    assert found.wrong_way == 0
    assert found.headline


def test_a_card_repeats_and_is_read_back(folder: Path) -> None:
    first = cards(folder, "noise")["noise"]
    assert read_cards(folder / "results")["noise"] == first
    shutil.rmtree(folder / "cache" / "audit" / "records")
    assert cards(folder, "noise")["noise"] == first
    assert cards(folder, "noise", seed=1)["noise"] != first


def test_degraded_copies_differ_by_their_share() -> None:
    sae = random_sae(16, 40)
    copies = degraded_copies(sae, 0)
    for name, share in (("noise-2", 0.02), ("noise-5", 0.05), ("noise-10", 0.1)):
        moved = (copies[name].W_dec - sae.W_dec).norm(dim=1) / sae.W_dec.norm(dim=1)
        assert torch.allclose(moved, torch.full((40,), share), atol=1e-5)
    assert sorted(map(tuple, copies["permuted"].W_dec.tolist())) == sorted(map(tuple, sae.W_dec.tolist()))
    assert copies["pruned"].d_sae == 36
    assert {tuple(row) for row in copies["pruned"].W_dec.tolist()} < {tuple(row) for row in sae.W_dec.tolist()}
    assert degraded_copies(sae, 0)["permuted"].sha256() == copies["permuted"].sha256()


def test_bad_requests_are_one_line(folder: Path, tmp_path: Path) -> None:
    with raises(UsageError, "autointerp", "judge"):
        cards(folder, "autointerp")
    with raises(UsageError, "metric", "nonsense"):
        cards(folder, "nonsense")
    for name in ("a", "b"):
        save_sae(random_sae(16, 24, model=name, hook="blocks.0.hook_resid_post"), tmp_path / name)
    arguments = [word for name in ("a", "b") for word in ("--sae", str(tmp_path / name))]
    result = CliRunner().invoke(main, ["audit", "--metric", "effects_small", *arguments])
    assert result.exit_code == 2
    check_message(result.output.strip().removeprefix("error: "), "--sae", "model a", "model")


def test_a_board_shows_cards_of_its_metrics_versions(tmp_path: Path) -> None:
    column = Column("m", 2, "s", None, "", "higher")
    board = Board("model", None, "hook", "task", "corpus", "float32", headlines=[column])
    short = ScoreCard("s", direction="higher", panel="p", discriminability=0.25, ladder="noise-5")
    for version, shown in ((2, 1), (1, 0)):
        Card("m", version, "saebench audit", 0, {}, (short,)).write(tmp_path)
        notes = card_notes(board, [tmp_path])
        assert len(notes) == shown
        assert all("25%" in note and "5 %" in note for note in notes)
    (tmp_path / "reliability" / "m.json").write_text("{}")
    [note] = card_notes(board, [tmp_path])
    assert "m.json" in note


def test_the_page_is_written_from_the_cards() -> None:
    root = Path(__file__).parents[1]
    space: dict[str, Any] = runpy.run_path(str(root / "docs" / "make_reliability.py"))
    assert (root / "docs" / "reliability.md").read_text() == space["page"](list(read_cards(root / "results").values()))
