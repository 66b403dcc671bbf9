"""Settings of metrics, and seeds: part of a record's identity where they change a number, and only there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

import saebench
from saebench import SAE, Batch, Env, Metric, Score
from saebench.errors import UsageError
from saebench.metric import Rows
from saebench.registry import installed
from saebench.running.request import Request
from saebench.running.settings import Unparsed, configure, read_settings
from tests.conftest import HOOK
from tests.raising import raises


@dataclass(frozen=True)
class Settings:
    limit: float = 1.0
    steps: int = 3
    way: Literal["over", "under"] = "over"
    file: Path | None = None
    name: str = "a"
    pair: tuple[int, ...] = (1, 2)
    loud: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be 1 or more")


class Share(Metric):
    """Share of activations beyond a limit."""

    name = "share"
    needs = frozenset({"x"})
    settings = Settings

    def __init__(self, sae: SAE) -> None:
        self.rows = Rows()

    def update(self, batch: Batch) -> None:
        beyond = (batch.x > self.settings.limit) == (self.settings.way == "over")
        self.rows.add(batch, n=batch.per_context(batch.scored.double()), k=batch.per_context(beyond.double().mean(-1)))

    def merge(self, other: "Share") -> None:
        self.rows.merge(other.rows)

    def units(self) -> Any:
        return self.rows.frame()

    def scores(self, env: Env) -> list[Score]:
        return [Score.ratio("share", "k", "n"), Score.plain("seed", env.seed, n=1, no_interval="exact")]


class Drawn(Share):
    """The same with a seed."""

    name = "drawn"
    seeded = True


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(installed().metrics, "share", Share)
    monkeypatch.setitem(installed().metrics, "drawn", Drawn)


@pytest.fixture
def measure(llama, tokens, two_saes, tmp_path):
    def run(**more: Any) -> Any:
        options: dict[str, Any] = {"model": str(llama), "hook": HOOK, "metrics": ["share"], "results": tmp_path / "r"}
        if "task" not in more:
            options["tokens"] = tokens
        return saebench.run(two_saes[0], **(options | more))[0]

    return run


def share(record: Any) -> float:
    return float(record.score("share")["value"])


def test_a_changed_setting_is_another_record(measure):
    plain = measure()
    assert "metrics" not in plain.settings
    other = measure(settings=["share.limit=0.5", "share.way=under"])
    assert other.settings["metrics"] == {"share": {"limit": 0.5, "way": "under"}}
    assert other.path != plain.path
    assert share(other) + share(measure(settings={"share": {"limit": 0.5}})) == pytest.approx(1)
    assert share(other) != share(plain)
    assert other.group != plain.group
    again = measure(settings={"share.limit": 0.5, "share.way": "under"})
    assert (again.path, len(again.runs)) == (other.path, 1)


def test_a_setting_at_its_default_changes_nothing(measure):
    plain = measure()
    again = measure(settings=["share.limit=1.0", "share.steps=3", "share.pair=[1,2]", "share.loud=false"])
    assert (again.path, len(again.runs)) == (plain.path, 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [("limit=2", 2.0), ("steps=4", 4), ("file=/a/b", Path("/a/b")), ("name=7", "7"), ("name=true", "true"),
     ("pair=[4]", (4,)), ("loud=true", True), ("name=x=y", "x=y")],
)  # fmt: skip
def test_values_have_the_settings_type(text, value):
    found = configure(Share, read_settings([f"share.{text}"])["share"])
    assert getattr(found.settings, text.partition("=")[0]) == value
    assert type(getattr(found.settings, text.partition("=")[0])) is type(value)
    assert Share.settings == Settings()


@pytest.mark.parametrize(
    ("given", "parts"),
    [("steps=1.5", ["share.steps", "1.5", "integer"]), ("limit=nan", ["share.limit", "nan", "number"]),
     ("limit=Infinity", ["share.limit", "finite"]), ("way=up", ["share.way", "over"]), ("stps=4", ["stps", "'steps'"]),
     ("steps=0", ["steps must be 1 or more"]), ("loud=2", ["share.loud", "2"]), ("steps=true", ["share.steps"])],
)  # fmt: skip
def test_bad_values_are_usage_errors(given, parts):
    with raises(UsageError, *parts):
        configure(Share, read_settings([f"share.{given}"])["share"])


@pytest.mark.parametrize(
    ("given", "parts"),
    [(["share"], ["share", "METRIC.NAME=VALUE"]), (["steps=4"], ["steps", "autointerp"]),
     (["shar.steps=4"], ["shar.steps", "'share'"]), (["share.steps=4", "share.steps=5"], ["share.steps", "twice"])],
)  # fmt: skip
def test_bad_requests_are_usage_errors(given, parts, measure):
    with raises(UsageError, *parts):
        measure(settings=given)


def test_a_metric_without_settings_takes_none(measure):
    with raises(UsageError, "fidelity", "no settings"):
        measure(metrics=["fidelity"], settings=["fidelity.k=1"])


def test_a_task_sets_them_too(measure, tmp_path):
    text = (Path(saebench.__file__).parent.parent / "tasks" / "fidelity.toml").read_text()
    assert text.count("\n[corpus]") == 1

    def task(settings: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(
            text.replace('name = "fidelity"', 'name = "mine"').replace("\n[corpus]", f"\n{settings}\n[corpus]")
        )
        return path

    from saebench.catalog import load_task
    from saebench.running.plan import wanted_metrics

    tasks = [
        load_task(str(task(part)))
        for part in ("", "[settings.share]\nlimit = 0.5\n", "[settings.share]\nlimit = 0.6\n")
    ]
    assert len({found.sha256() for found in tasks}) == 3
    [share] = wanted_metrics(Request("x", metrics=["share"]), tasks[1]).values()
    assert share.changed_settings == {"limit": 0.5}
    [share] = wanted_metrics(Request("x", metrics=["share"], settings=["share.steps=5"]), tasks[1]).values()
    assert share.changed_settings == {"limit": 0.5, "steps": 5}


def test_a_seed_is_identity_of_seeded_metrics_only(measure):
    plain, again = measure(seed=0), measure(seed=7)
    assert (again.path, len(again.runs)) == (plain.path, 1)
    assert again.score("seed")["value"] == 0
    drawn, other = measure(metrics=["drawn"], seed=0), measure(metrics=["drawn"], seed=7)
    assert drawn.path == plain.path
    assert other.path != drawn.path
    assert other.group != drawn.group
    assert other.score("seed")["value"] == 7
    both = measure(metrics=["share", "drawn"], seed=7)
    assert both.path == other.path
    assert {s["value"] for s in both.scores if s["key"] == "seed"} == {0, 7}


def test_the_value_from_the_command_line_is_text():
    assert isinstance(read_settings(["share.limit=2"])["share"]["limit"], Unparsed)
