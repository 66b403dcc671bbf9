"""The table at the end of a run: what it says of a score is what the metric says that made it, never another's words."""

from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from saebench import Metric
from saebench.board.leaderboard import boards, select
from saebench.board.run_table import record_table
from saebench.registry import installed
from saebench.results import Record
from tests.synthetic import Make, make_record, plain

PROBING = "test documents whose label a probe on 16 latents per class predicts"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return partial(make_record, tmp_path)


def shown(record: Record) -> dict[str, str]:
    """What the table says of each score."""
    text = StringIO()
    Console(file=text, width=200).print(record_table(record))
    rows = [[cell.strip() for cell in line.split("│")] for line in text.getvalue().splitlines() if "│" in line]
    return {row[1].split()[0]: row[4] for row in rows}


class Mine(Metric):
    """A stranger's metric with keys that are ours too."""

    name = "mine"
    version = 1
    about = {"accuracy": "pages that I like, of {n:,}"}  # noqa: RUF012
    headlines = ("kl",)


def of(make: Make, metric: str, *rows: dict[str, Any], version: int = 1) -> Record:
    rows = tuple(row | {"version": version} for row in rows)
    return make(metric, metrics={metric: {"version": version, "units": None}}, scores=list(rows))


def test_a_strangers_key_never_gets_our_sentence(make: Make) -> None:
    assert shown(of(make, "mine", plain("mine", "accuracy", 0.5)))["accuracy"] == "fraction"
    ours = installed().metrics["probing"].version
    assert shown(of(make, "probing", plain("probing", "accuracy", 0.5), version=ours))["accuracy"] == PROBING
    older = of(make, "probing", plain("probing", "accuracy", 0.5), version=ours + 1)
    assert shown(older)["accuracy"] == "fraction"


def test_a_strangers_own_sentence_is_shown(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(installed().metrics, "mine", Mine)
    rows = plain("mine", "accuracy", 0.5) | {"n": 1234}, plain("mine", "kl", 0.5)
    said = shown(of(make, "mine", *rows))
    assert said == {"accuracy": "pages that I like, of 1,234", "kl": "fraction"}


def test_headlines_are_a_metrics_own(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's key that is one of ours is no headline, and hides none of the scores beside it."""
    rows = plain("mine", "kl", 0.1, "lower"), plain("mine", "other", 0.2, "higher"), plain("mine", "l0", 3.0)

    def keys() -> list[str]:
        [board] = boards([of(make, "mine", *rows)])
        return [column.key for column in select(board, ())]

    assert keys() == ["kl", "other"]
    monkeypatch.setitem(installed().metrics, "mine", Mine)
    assert keys() == ["kl"]
