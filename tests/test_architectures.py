"""Architectures at matched L0: seeds as replicates, interpolation, the family-wise promise."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import saebench
from saebench.board.architectures import by_architecture
from saebench.cli import main
from saebench.errors import UsageError
from saebench.results import load_records
from saebench.stats import Ratio, holm
from saebench.stats.replicates import Replicates, interpolate, interpolated_difference, replicates
from saebench.testing import random_sae
from tests.raising import check_message, raises

PLANTED = """
name = "tiny"
version = 1
metrics = ["fidelity", "sparsity"]
[planted]
features = 40
d = 16
[samples]
contexts = 12
length = 32
"""


def board(random: np.random.Generator, means: Sequence[float], sd: Sequence[float], seeds: int = 3) -> np.ndarray:
    """Holm-adjusted p-values of all pairs of architectures; each is interpolated between two levels of its seeds."""
    documents = 30
    common = random.normal(0, 0.5, documents)  # documents are easy or hard for every SAE
    arms = []
    for mean, spread in zip(means, sd, strict=True):
        levels = []
        for _ in range(2):
            values = mean + random.normal(0, spread, (seeds, 1)) + common + random.normal(0, 0.5, (seeds, documents))
            own = values.mean(0)
            psi = (own - own.mean()) / documents / np.sqrt(1 - 1 / documents)
            levels.append(Replicates(values.mean(1), psi, documents - 1))
        arms.append(interpolate(levels, [0.6, 0.4]))
    return holm([p for a, b in combinations(arms, 2) if (p := interpolated_difference(a, b).p_value) is not None])


def test_the_family_wise_error_is_kept() -> None:
    """Six equal architectures whose seeds scatter unequally, 15 pairs: a false finding on at most 5 % of boards.

    Power, by the same simulation with 3,000 boards (false findings on 2.4 %): 53 % of the pairs that lie 3 seed standard
    deviations apart are told apart, 91 % at 5, all at 10.
    """
    random = np.random.default_rng(0)
    spreads = [0.5, 0.5, 1.0, 1.0, 2.0, 2.0]
    false = np.mean([(board(random, [0.0] * 6, spreads) <= 0.05).any() for _ in range(600)])
    assert false <= 0.05
    far = [board(random, [0.0] * 5 + [10.0], [1.0] * 6)[[4, 8, 11, 13, 14]] <= 0.05 for _ in range(200)]
    near = [board(random, [0.0] * 5 + [3.0], [1.0] * 6)[[4, 8, 11, 13, 14]] <= 0.05 for _ in range(200)]
    assert np.mean(far) > 0.98
    assert np.mean(near) == pytest.approx(0.53, abs=0.1)


def test_the_interval_of_a_difference_covers() -> None:
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(800):
        a, b = (interpolate([Replicates(random.normal(1, s, 3))], [1.0]) for s in (1.0, 2.0))
        found = interpolated_difference(a, b)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0 <= found.high
    assert inside / 800 == pytest.approx(0.96, abs=0.02)  # Welch with three seeds errs on the safe side


def test_replicates_hold_the_noise_of_documents() -> None:
    """Two recipes whose seeds agree: the documents' paired noise is all there is."""
    import pandas as pd

    random = np.random.default_rng(2)
    a, b = random.normal(1, 1, 40), random.normal(1, 1, 40)
    frames = [[pd.DataFrame({"unit_id": range(40), "cluster_id": range(40), "x": x, "one": 1.0})] * 2 for x in (a, b)]
    first, second = (interpolate([found], [1.0]) for found in replicates(frames, Ratio("x", "one")))
    found = interpolated_difference(first, second)
    assert found.value == pytest.approx((a - b).mean())
    assert found.high is not None
    assert found.high - found.value == pytest.approx(2.0227 * (a - b).std(ddof=1) / np.sqrt(40), rel=1e-3)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of random SAEs: `one` at L0 2 and 8, `two` at 4, three seeds each; `single` with one seed."""
    folder = tmp_path_factory.mktemp("architectures")
    (folder / "tiny.toml").write_text(PLANTED)
    made = {
        f"{name}-{k}-{seed}": random_sae(16, 40, k=k, seed=100 * k + seed, architecture=name)
        for name, ks, seeds in (("one", (2, 8), 3), ("two", (4,), 3), ("single", (4,), 1), ("far", (16,), 3))
        for k in ks
        for seed in range(len(name), len(name) + seeds)
    }
    saebench.run(list(made.values()), names=list(made), results=folder / "results", planted=str(folder / "tiny.toml"))
    return folder / "results"


def test_scores_are_interpolated_at_the_matched_l0(results: Path) -> None:
    records = load_records(results)
    [found] = by_architecture(records, ["explained_variance"], 4)
    [score] = found.scores
    rows = {row.architecture: row for row in score.rows}
    values = {r.sae["name"]: r.score("explained_variance")["value"] for r in records}
    l0 = {r.sae["name"]: r.score("l0")["value"] for r in records}

    def level(name: str) -> tuple[float, float]:
        own = [n for n in values if n.startswith(name)]
        return float(np.mean([np.log(l0[n]) for n in own])), float(np.mean([values[n] for n in own]))

    (low, first), (high, second) = level("one-2"), level("one-8")
    share = (np.log(4) - low) / (high - low)
    assert rows["one"].value == pytest.approx((1 - share) * first + share * second)
    assert rows["two"].value == pytest.approx(level("two-4")[1])
    assert rows["one"].saes == 6
    assert rows["one"].low is not None
    assert rows["single"].low is None
    assert rows["single"].rank is None
    assert "seed" in str(rows["single"].reason)
    assert "far" not in rows
    assert any("far" in note for note in found.notes)
    assert found.family == 1  # one and two; the others have no test


def test_the_command_prints_tables_and_json(results: Path) -> None:
    arguments = [
        "compare",
        "--by",
        "architecture",
        "--results",
        str(results),
        "--l0",
        "4",
        "--score",
        "explained_variance",
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "explained_variance at L0 4" in done.output
    assert "unnamed" not in done.output
    body = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert body[0]["l0"] == 4
    assert {row["architecture"] for row in body[0]["scores"][0]["rows"]} == {"one", "two", "single"}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [(["--l0", "4"], ("--l0", "--by")), ([], ("--by",)), (["--by", "architecture", "--l0", "-1"], ("--l0", "-1"))],
)
def test_bad_requests_are_one_line(arguments: list[str], parts: tuple[str, ...], results: Path) -> None:
    done = CliRunner().invoke(main, ["compare", "--results", str(results), *arguments])
    assert done.exit_code == 2
    check_message(done.output.strip().removeprefix("error: "), *parts)


def test_one_architecture_is_refused(results: Path) -> None:
    with raises(UsageError, "two architectures"):
        by_architecture([r for r in load_records(results) if r.sae["architecture"] == "two"])
