"""k-sparse probing on planted pools: right where the answer is known, at chance where there is nothing to know."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saebench.plugins.metrics.probing.floors import over_draws
from saebench.plugins.metrics.probing.metric import Probing
from saebench.plugins.metrics.probing.pooling import pool_dense, pool_latents, sparse_rows
from saebench.plugins.metrics.probing.probes import Documents
from saebench.plugins.metrics.probing.random_sae import RandomSAE
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from saebench.errors import SaebenchError
from saebench.labels import Labels
from saebench.metric import Batch, Env, Score, get_state, set_state
from saebench.running.state import StateFolder
from saebench.sae import SAE, Latents
from saebench.stats import auroc_interval, ratio_interval
from saebench.testing import identity_sae, random_sae
from tests.raising import raises

D, TOKENS = 6, 4


def labels_of(label: np.ndarray, test: np.ndarray, group: np.ndarray | None = None) -> Labels:
    names = tuple("abcdefghij"[: max(2, int(label.max()) + 1)])
    return Labels(names, label, test, np.arange(len(label)) if group is None else group)


def two_sided(n: int, classes: int = 2, seed: int = 0) -> Labels:
    """n documents, a third of them held out, classes as even as they can be on either side."""
    test = np.arange(n) % 3 == 0
    label = np.zeros(n, np.int64)
    rng = np.random.default_rng(seed)
    for side in (test, ~test):
        label[side] = rng.permutation(np.arange(side.sum()) % classes)
    return labels_of(label, test)


def batch_of(x: torch.Tensor, labels: Labels, sae: SAE, rows: np.ndarray, scored: torch.Tensor) -> Batch:
    own, mask = x[rows], scored[rows]
    return Batch(
        torch.ones(mask.shape, dtype=torch.int64), ~mask, mask, rows, rows // 2, torch.arange(mask.shape[1]),
        torch.zeros(x.shape[-1]), own, sae.encode(own), _x_read=own, _labels=labels.take(rows),
    )  # fmt: skip


def measured(
    x: torch.Tensor, labels: Labels, sae: SAE | None = None, size: int = 1000, scored: torch.Tensor | None = None
) -> Probing:
    """The metric after documents x [N, T, d], in batches of `size`."""
    sae = sae or identity_sae(x.shape[-1])
    scored = torch.ones(x.shape[:2], dtype=torch.bool) if scored is None else scored
    metric = Probing(sae)
    for start in range(0, len(x), size):
        metric.update(batch_of(x, labels, sae, np.arange(start, min(start + size, len(x))), scored))
    return metric


def values(metric: Probing) -> dict[tuple[str, float | None], float]:
    return {key: v for key, (v, _, _) in intervals(metric).items()}


def intervals(metric: Probing) -> dict[tuple[str, float | None], tuple[float, float, float]]:
    scores = metric.scores(Env(identity_sae(D)))
    units = metric.units()

    def one(score: Score) -> tuple[float, float, float]:
        if score.num is None:
            return score.value, score.low, score.high
        found = ratio_interval(units, score)
        return found.value, found.low, found.high

    return {(s.key, s.at): one(s) for s in scores}


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, TOKENS, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("classes", [2, 4])
def test_a_latent_that_is_the_label_scores_1_with_k_1(classes: int) -> None:
    labels = two_sided(90, classes)
    x = 0.01 * noise(90)
    for c in range(classes):
        x[labels.label == c, :, c] += 1
    metric = measured(x, labels)
    found = values(metric)
    for key in ("accuracy", "balanced_accuracy", "auroc"):
        assert found[f"mean_sae_{key}", 1] == 1
        assert found[f"max_sae_{key}", 1] == 1
    assert found["gap_to_dense", None] == found["accuracy", None] - found["dense_accuracy", None]
    [first] = [p for p in metric.details()["probes"] if (p["pool"], p["k"], p["class"]) == ("mean", 1, "b")]
    assert first["latents"] in ([0], [1]) if classes == 2 else first["latents"] == [1]


def test_labels_planted_in_the_test_split_only_stay_at_chance() -> None:
    """A feature that is the label on the test side and noise on the training side must not be found."""
    labels = two_sided(600)
    features = np.random.default_rng(1).normal(size=(600, 400))
    blind = features.copy()
    features[labels.test, 7] += 10 * labels.label[labels.test]
    documents = Documents(labels)
    for k in (1, 5):
        probe, without = (documents.sparse_probes(f, [k])[k] for f in (features, blind))
        assert 7 not in probe.chosen[0]
        assert (probe.weights[0] == without.weights[0]).all()
        assert probe.C == without.C
        label = labels.label[labels.test]
        found = ratio_interval(
            frame_of(documents.predicted(probe.decision) == label, label), Score.ratio("a", "right", "one")
        )
        assert found.low < 0.5 < found.high
    everyone = labels.label == 1  # what a choice on all rows would have found
    assert np.abs(features[everyone].mean(0) - features[~everyone].mean(0)).argmax() == 7


def test_intervals_of_shuffled_labels_cover_chance() -> None:
    """200 shuffles (within each side, so that chance is exactly a half) of pooled features that say nothing."""
    rng = np.random.default_rng(0)
    n, covered = 300, {"accuracy": 0, "balanced": 0, "auroc": 0}
    for trial in range(200):
        labels = two_sided(n, seed=trial)
        documents = Documents(labels)
        features = rng.normal(size=(n, 30))
        probe = documents.sparse_probes(features, [2])[2]
        label = labels.label[labels.test]
        right = documents.predicted(probe.decision) == label
        frame = frame_of(right, label)
        for key, num, den in (("accuracy", "right", "one"), ("balanced", "weighted", "weight")):
            found = ratio_interval(frame, Score.ratio(key, num, den))
            covered[key] += found.low <= 0.5 <= found.high
        area = auroc_interval(probe.decision, label, np.arange(len(label)))
        covered["auroc"] += area.low <= 0.5 <= area.high
    assert all(0.93 <= c / 200 <= 0.97 for c in covered.values()), covered


def frame_of(right: np.ndarray, label: np.ndarray) -> Any:
    import pandas as pd

    weight = 1 / (2 * np.bincount(label)[label])
    unit = np.arange(len(label))
    return pd.DataFrame(
        {
            "unit_id": unit,
            "cluster_id": unit,
            "right": right * 1.0,
            "one": 1.0,
            "weighted": right * weight,
            "weight": weight,
        }
    )


def test_an_imbalanced_set() -> None:
    """9 of 10 documents are of one class and nothing tells them apart: accuracy is the majority rate, balanced a half."""
    n = 600
    test = np.arange(n) % 3 == 0
    labels = labels_of((np.arange(n) // 3 % 10 == 0).astype(np.int64), test)
    found = intervals(measured(noise(n, 3), labels))
    assert found["majority_rate", None][0] == 0.9
    assert found["accuracy", None][0] == pytest.approx(0.9, abs=0.01)
    assert found["balanced_accuracy", None][0] == pytest.approx(0.5, abs=0.02)
    low, high = found["auroc", None][1:]
    assert low < 0.5 < high


def test_scores_are_those_of_scikit_learn_by_hand() -> None:
    """k = 2, mean pooling: pooled, chosen, scaled, fitted and scored again without saebench."""
    labels = two_sided(150, 3)
    x = noise(150, 5)
    x[np.arange(150), :, labels.label] += 0.8
    metric = measured(x, labels)
    found = values(metric)
    pooled = torch.cat([x, -x], -1).relu().double().mean(1).numpy()
    train, test, label = ~labels.test, labels.test, labels.label
    chosen = {(p["pool"], p["k"], p["class"]): p for p in metric.details()["probes"]}
    decisions = []
    for c, name in enumerate("abc"):
        own = label[train] == c
        gap = np.abs(pooled[train][own].mean(0) - pooled[train][~own].mean(0))
        columns = np.argsort(-gap)[:2]
        entry = chosen["mean", 2, name]
        assert entry["latents"] == columns.tolist()
        a, b = pooled[train][:, columns], pooled[test][:, columns]
        factor = 1 / np.sqrt(a.var(0).mean())
        a, b = (a - a.mean(0)) * factor, (b - a.mean(0)) * factor
        model = LogisticRegression(C=entry["C"], tol=1e-8, max_iter=1000).fit(a, own)
        assert entry["weights"] == pytest.approx(model.coef_[0] * factor, rel=1e-3, abs=1e-4)
        decisions.append(model.decision_function(b))
    decision = np.stack(decisions, 1)
    area = np.mean([roc_auc_score(label[test] == c, decision[:, c]) for c in range(3)])
    assert found["mean_sae_auroc", 2] == pytest.approx(area, abs=2e-3)
    assert found["mean_sae_accuracy", 2] == pytest.approx(np.mean(decision.argmax(1) == label[test]), abs=0.021)
    right = metric.units()["mean_sae_2"].to_numpy() == 1
    said = np.where(right, label[test], -1)
    recalls = [np.mean(said[label[test] == c] == c) for c in range(3)]
    assert found["mean_sae_balanced_accuracy", 2] == pytest.approx(np.mean(recalls), abs=1e-12)
    assert balanced_accuracy_score(label[test], decision.argmax(1)) == pytest.approx(np.mean(recalls), abs=0.03)


def test_batches_parts_and_saved_states_change_nothing(tmp_path: Path) -> None:
    labels, x, sae = two_sided(60), noise(60, 8), random_sae(D, 20, k=3)
    x[labels.label == 1, :, 0] += 1
    whole = values(measured(x, labels, sae))
    assert values(measured(x, labels, sae, size=7)) == pytest.approx(whole, abs=1e-9)
    scored = torch.ones(x.shape[:2], dtype=torch.bool)
    order = np.random.default_rng(0).permutation(60)
    first, second = Probing(sae), Probing(sae)
    first.update(batch_of(x, labels, sae, order[:25], scored))
    restored = Probing(sae)
    folder = StateFolder(tmp_path)
    folder.save("g", {"lanes": {"a:": get_state(first)}, "errors": {}})
    set_state(restored, folder.find("g", {"a:"})["lanes"]["a:"])
    second.update(batch_of(x, labels, sae, order[25:], scored))
    restored.merge(second)
    assert values(restored) == pytest.approx(whole, abs=1e-9)


def test_pooling_counts_scored_tokens_only() -> None:
    sae = identity_sae(2)
    x = torch.tensor([[[1.0, -2.0], [3.0, 4.0], [99.0, 99.0]], [[5.0, 0.0], [7.0, 7.0], [7.0, 7.0]]])
    scored = torch.tensor([[True, True, False], [True, False, False]])
    latents = sae.encode(x).select(scored)
    dense = pool_dense(x, scored)
    assert dense["mean"].tolist() == [[2, 1], [5, 0]]
    assert dense["max"].tolist() == [[3, 4], [5, 0]]
    rows = pool_latents(latents, scored)
    assert sparse_rows([rows], "mean", 4).toarray().tolist() == [[2, 2, 0, 1], [5, 0, 0, 0]]
    assert sparse_rows([rows, rows], "max", 4).toarray().tolist() == [[3, 4, 0, 2], [5, 0, 0, 0]] * 2


def test_the_maximum_of_a_negative_latent_is_0_unless_it_always_fires() -> None:
    z = torch.tensor([[[-1.0, -2.0], [0.0, -3.0]]])
    scored = torch.ones(1, 2, dtype=torch.bool)
    rows = pool_latents(Latents.from_dense(z).select(scored), scored)
    assert sparse_rows([rows], "max", 2).toarray().tolist() == [[0, -2]]
    assert sparse_rows([rows], "mean", 2).toarray().tolist() == [[-0.5, -2.5]]


def test_the_random_sae_is_as_sparse_as_the_sae_on_every_token() -> None:
    x = noise(20).reshape(-1, D)
    counts = torch.arange(80) % 9
    latents = RandomSAE(D, 64, x.device).encode(x, torch.zeros(D), counts)
    assert (latents.counts() == counts).all()
    assert (latents.values > 0).all()
    directions = RandomSAE(D, 64, x.device).directions
    top = (x[8] @ directions.T).topk(8)
    start = latents.offsets[8]
    assert sorted(latents.indices[start : start + 8].tolist()) == sorted(top.indices.tolist())


@pytest.mark.parametrize("by", [10, 0.1])
def test_the_scale_of_a_latent_changes_nothing(by: float) -> None:
    """A decoder row `by` times as long with a latent 1/`by` times as large is the same latent."""
    labels, x = two_sided(120, 3), noise(120, 4)
    x[np.arange(120), :, labels.label] += 0.7
    sae = random_sae(D, 30, k=None)
    factor = torch.ones(30)
    factor[::2] = by
    other = replace(sae, W_enc=sae.W_enc / factor, b_enc=sae.b_enc / factor, W_dec=sae.W_dec * factor[:, None])
    a, b = measured(x, labels, sae), measured(x, labels, other)
    assert values(b) == pytest.approx(values(a), abs=1e-6)
    assert [p["latents"] for p in a.details()["probes"]] == [p["latents"] for p in b.details()["probes"]]


def test_a_fold_chooses_latents_and_scale_inside() -> None:
    """A feature that tells the held-out half of a fold and nothing else must not lower the loss of its own fold."""
    labels = two_sided(300)
    documents = Documents(labels)
    features = np.random.default_rng(2).normal(size=(300, 50))
    inside, outside = documents._folds[0]
    planted = features.copy()
    planted[outside, 7] += 100 * labels.label[outside]
    [ranking], [other] = (documents._ranking(f, inside, 5) for f in (features, planted))
    assert (ranking == other).all()
    assert documents._ranking(planted, documents.train, 5)[0][0] == 7
    assert not set(labels.group[inside]) & set(labels.group[outside])


def test_floors_and_folds_follow_the_seed() -> None:
    directions = [RandomSAE(D, 64, torch.device("cpu"), *which).directions for which in ((0, 0), (0, 1), (1, 0))]
    assert all(float((a * b).sum(1).abs().mean()) < 0.5 for i, a in enumerate(directions) for b in directions[:i])
    again = RandomSAE(D, 64, torch.device("cpu"), 0, 1).directions
    assert (again == directions[1]).all()
    labels = two_sided(60)
    first, second = (Documents(labels, seed)._folds[0][1].tolist() for seed in (0, 1))
    assert first != second


def test_the_floor_is_the_mean_of_its_draws_and_its_interval_holds_their_spread() -> None:
    labels, x = two_sided(200), noise(200, 9)
    x[labels.label == 1, :, 0] += 0.4
    metric = measured(x, labels, random_sae(D, 40, k=3))
    found = intervals(metric)
    units = metric.units()
    floors = [units[f"mean_random_sae_{i}_16"].mean() for i in range(3)]
    value, low, _ = found["random_sae_accuracy", None]
    assert value == pytest.approx(np.mean(floors))
    documents = ratio_interval(units, Score.ratio("a", "mean_random_sae_16", "one", within=(0, 1)))
    half = 4.302653 * np.std(floors, ddof=1) / 3**0.5
    assert value - low == pytest.approx(np.hypot(value - documents.low, half), rel=1e-6)
    assert found["gap_to_random_sae", None][0] == pytest.approx(found["accuracy", None][0] - value)
    assert found["mean_random_sae_auroc", 16][1] < found["mean_random_sae_auroc", 16][0]


def test_intervals_over_documents_and_draws_cover() -> None:
    """A mean over 3 draws and 40 documents, each with noise of its own, is within its interval in 93 to 99 % of trials."""
    rng = np.random.default_rng(0)
    for spread in (0.0, 0.1, 1.0):
        covered = 0
        for _ in range(2000):
            documents, draws = rng.normal(size=40) / 6, rng.normal(scale=spread, size=3) / 6
            value = documents.mean() + draws.mean()
            half = 2.0227 * documents.std(ddof=1) / 40**0.5
            low, high = over_draws(value, value - half, value + half, draws + documents.mean())
            covered += low <= 0 <= high
        assert 0.93 <= covered / 2000 <= 0.99


def test_too_few_documents_are_an_error_or_counted() -> None:
    one_class = labels_of(np.zeros(30, np.int64), np.arange(30) % 3 == 0)
    with raises(SaebenchError, "two classes"):
        values(measured(noise(30), one_class))
    labels = two_sided(18)
    metric = measured(noise(18), labels, random_sae(D, 40, k=4))
    assert ("mean_sae_accuracy", 16) not in values(metric)
    assert metric.details()["left_out"]["k above the number of training documents"] == [16]


def test_one_group_of_a_label_on_the_test_side_gives_no_interval() -> None:
    """Three books, each by another author: how much an author's books differ cannot be told from them."""
    label = np.repeat(np.arange(3), 40)
    group = np.arange(120) // 10
    test = np.isin(group, [0, 4, 8])
    metric = measured(noise(120, 6), labels_of(label, test, group))
    scores = metric.scores(Env(identity_sae(D)))
    assert {s.no_interval for s in scores} == {
        "label 'a' has one group on the test side: the variance between groups is unknown"
    }
    assert all(s.low is None and s.num is None for s in scores)
    again = measured(noise(120, 6), labels_of(label, test, np.arange(120)))
    for score, other in zip(scores, again.scores(Env(identity_sae(D))), strict=True):
        assert other.no_interval is None
        if other.num is None:
            assert score.value == pytest.approx(other.value, abs=0.25)  # folds are by group: another C
    frame = metric.units()
    accuracy = next(s for s in scores if s.key == "accuracy")
    assert accuracy.value == frame["mean_sae_12"].mean()
    assert accuracy.n == len(frame) == 30


def test_a_document_without_a_scored_token_is_counted() -> None:
    labels = two_sided(40)
    scored = torch.ones(40, TOKENS, dtype=torch.bool)
    scored[3] = False
    metric = measured(noise(40), labels, scored=scored)
    values(metric)
    assert metric.details()["left_out"]["documents without a scored token"] == 1
