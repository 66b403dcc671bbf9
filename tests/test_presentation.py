"""A board shows a metric as the metric declares it, without the plugin too; the harness itself knows no metric."""

import ast
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from saebench import Env, Metric, Score
from saebench.board.leaderboard import boards
from saebench.board.plots import plots
from saebench.board.run_table import record_table
from saebench.board.sparsity import measured_sparsity
from saebench.board.tables import notes
from saebench.errors import SaebenchError
from saebench.presentation import Axis, Figure, Presentation, Reference
from saebench.registry import installed
from saebench.results import load_records
from saebench.running.scoring import finish_metric
from saebench.testing import random_sae
from tests.conftest import REPOSITORY
from tests.raising import raises
from tests.synthetic import FIDELITY, Make, make_record, plain


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return partial(make_record, tmp_path)


class Charm(Metric):
    """A metric of no installed plugin, with a curve between a ceiling and a floor of its own."""

    name = "charm"
    headlines = ("charm",)
    about = {"charm": "how charming, over {n:,}", "charm_worst": "the worst"}  # noqa: RUF012
    figures = (
        Figure("charm", references=(Reference("charm_worst", "worst case"),), worthless=0.5, worthless_label="chance"),
        Figure("charm_by_place", "at", "place", references=(Reference("best", "best there is", shared=True),)),
    )
    sparsity = Axis("busy", "busy latents")

    def units(self) -> pd.DataFrame:
        one = np.arange(12.0)
        return pd.DataFrame({"unit_id": one, "cluster_id": one, "num": one / 12, "low": one / 24, "den": 1.0 + 0 * one})

    def scores(self, env: Env) -> list[Score]:
        curve = [Score.plain("charm_by_place", 0.1 * at, n=3, no_interval="exact", at=float(at)) for at in (1, 2, 4)]
        best = Score.plain("best", 0.9, n=3, no_interval="exact")
        busy = Score.plain("busy", 7.0, n=3, no_interval="exact")
        return [
            Score.ratio("charm", "num", "den", direction="higher"), Score.ratio("charm_worst", "low", "den", direction="higher"),
            *curve, best, busy,
        ]  # fmt: skip


def test_a_strangers_figures_captions_and_axis_are_drawn_without_the_plugin(make: Make, tmp_path: Path) -> None:
    """As a run writes the record: the plugin is not installed, and every line holds the record's numbers."""
    sae = random_sae(4, 8)
    found = finish_metric(Charm(sae), None, Env(sae))
    assert found.errors == {}
    assert found.units is not None
    record = make("a", metrics={"charm": found.entry}, scores=found.scores)
    assert record.path is not None
    record.write(record.path, {"charm": found.units})
    [again] = load_records(record.path)
    assert "charm" not in installed().metrics
    assert Presentation.read(again.metrics["charm"]["presentation"]) == Presentation.of(Charm)

    [board] = boards([again])
    assert [c.key for c in board.headlines] == ["charm"]
    assert (board.sparsity, board.rows[0].sparsity and board.rows[0].sparsity.value) == (Charm.sparsity, 7.0)
    drawn = plots(board)
    assert list(drawn) == ["control-charm", "curve-charm_by_place"]
    spec = drawn["control-charm"].spec
    lines = {value.get("series", "score"): value["y"] for value in spec["data"]["values"]}
    assert "busy latents" in str(spec["layer"])
    assert lines == {
        "score": pytest.approx(66 / 144), "worst case": pytest.approx(66 / 288), "chance": 0.5,
    }  # fmt: skip
    values = drawn["curve-charm_by_place"].spec["data"]["values"]
    assert [v["y"] for v in values if v.get("series") == "best there is"] == [0.9]
    assert [v["y"] for v in values if v["kind"] == "sae"] == pytest.approx([0.1, 0.2, 0.4])
    captions = list(record_table(again).columns[3].cells)
    assert str(captions[0]) == "how charming, over 12"


def test_the_records_presentation_wins_over_the_installed_one(make: Make) -> None:
    """A record's own words: what the installed plugin would show today is another thing."""
    stored = {"headlines": ["kl"], "about": {"kl": "distance"}}
    entry = {"version": installed().metrics["fidelity"].version, "units": None}
    scores = [plain("fidelity", key, 0.5, "lower") for key in ("explained_variance", "kl")]
    [with_own] = boards([make("a", metrics={"fidelity": entry | {"presentation": stored}}, scores=scores)])
    assert [c.key for c in with_own.headlines] == ["kl"]
    [without] = boards([make("b", metrics={"fidelity": entry}, scores=scores)])
    assert [c.key for c in without.headlines] == ["explained_variance", "kl"]


@pytest.mark.parametrize("stored", [3, {"headlines": [3]}, {"figures": [{"key": "l0", "against": "moon"}]},
                                    {"sparsity": {"key": "l0"}}, {"about": {"x": "y" * 10_000}}])  # fmt: skip
def test_an_invalid_presentation_costs_a_note(make: Make, stored: Any) -> None:
    record = make("a", metrics={"strange": {"version": 1, "units": None, "presentation": stored}},
                  scores=[plain("strange", "l0", 3.0, "lower")])  # fmt: skip
    [board] = boards([record])
    assert [c.key for c in board.headlines] == ["l0"]
    [note] = notes(board)
    assert note.startswith("a: strange: presentation: ")
    assert len(note) < 300
    plots(board)


def test_a_metric_that_declares_nonsense_fails_by_name() -> None:
    class Wrong(Charm):
        name = "wrong"
        figures = (Figure("charm", "sideways"),)  # type: ignore[arg-type]

    sae = random_sae(4, 8)
    found = finish_metric(Wrong(sae), None, Env(sae))
    assert "figures.0.against" in found.errors["wrong"]
    assert found.scores == []
    with raises(SaebenchError, "figures.0.against"):
        Presentation.of(Wrong).to_json()


def test_two_sparsity_scores_are_never_on_one_axis(make: Make) -> None:
    """Two SAEs measured with one score, one with another: the common axis has two points, and the third has no place."""
    other = Presentation(sparsity=Axis("l0", "another count")).to_json()
    records = [make("a", 0.0), make("b", 0.01)]
    records.append(make("c", 0.02, metrics={"theirs": {"version": 1, "units": None, "presentation": other}},
                        scores=[plain("theirs", "l0", 9000.0)]))  # fmt: skip
    found = measured_sparsity(records)
    assert (found.axis, found.metric) == (Presentation.read(FIDELITY).sparsity, "fidelity")
    assert [found.of(r) is not None for r in records] == [True, True, False]


def test_committed_records_render_as_their_metrics_declare() -> None:
    """Records from before presentations were stored take the installed metrics'."""
    found = {board.task: board for board in boards(load_records(REPOSITORY / "results"))}
    fidelity = plots(found["fidelity@1"])
    assert {"pareto-explained_variance", "pareto-kl", "curve-dead_fraction_curve"} <= set(fidelity)
    assert all(row.sparsity for board in found.values() for row in board.rows)


def _literals(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_boards_and_records_name_no_metric_and_no_score() -> None:
    ours = [m for name, m in installed().metrics.items() if m.__module__.startswith("saebench.plugins")]
    names = {m.name for m in ours} | {key for m in ours for key in (*m.about, *m.headlines)}
    names |= {figure.key for m in ours for figure in m.figures}
    names -= {"sparsity", "score"}  # the axis that any metric may declare, and the word for any of its numbers
    assert {"l0", "explained_variance", "autointerp"} <= names
    harness = REPOSITORY / "saebench"
    files = [harness / name for name in ("results.py", "report.py", "notebook.py", "running/scoring.py")]
    for path in (*harness.glob("board/*.py"), *files):
        assert not names & set(_literals(path)), path.name
