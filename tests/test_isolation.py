"""A metric that misbehaves fails alone, by name: its neighbours' numbers are those of a run without it."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import saebench
from saebench import SAE, Batch, Env, Metric, Score
from saebench.cache import seal, unseal
from saebench.cli import main
from saebench.metric import Edit, Rows
from saebench.registry import installed
from saebench.runner import RunError
from tests.conftest import HOOK
from tests.raising import check_message


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Bad(Metric):
    """Does one thing at a time that no metric should do."""

    name = "bad"
    needs = frozenset({"x", "latents", "reconstruction", "token_losses"})
    edit_rows = 1
    deed = ""

    def __init__(self, sae: SAE) -> None:
        self.sae_ = None
        self.rows = Rows()
        self.kept: Any = 0
        self._sae = sae
        self.act("init", sae)

    def act(self, when: str, given: Any) -> None:
        if when in DEEDS.get(self.deed, {}):
            DEEDS[self.deed][when](self, given)

    def edits(self, batch: Batch) -> list[Edit]:
        self.act("edits", batch)
        return [Edit("zero", torch.zeros_like(batch.x))]

    def update(self, batch: Batch) -> None:
        self.act("update", batch)

    def units(self) -> Any:
        self.act("units", None)
        return super().units()

    def scores(self, env: Env) -> list[Score]:
        self.act("scores", env)
        return [Score.plain("one", 1, n=1, no_interval="exact")]


def stop(code: Any) -> Any:
    return lambda *_: sys.exit(code)


def throw(error: BaseException) -> Any:
    def run(*_: Any) -> None:
        raise error

    return run


def through_numpy(_: Any, batch: Batch) -> None:
    batch.x.numpy()[:] = 7


def keep(value: Any) -> Any:
    return lambda metric, _: setattr(metric, "kept", value)


DEEDS: dict[str, dict[str, Any]] = {
    "x": {"update": lambda _, b: b.x.zero_()},
    "x.data": {"update": lambda _, b: b.x.data.mul_(2)},
    "x by numpy": {"update": through_numpy},
    "x by a view": {"update": lambda _, b: b.x[0, 0].fill_(3)},
    "x in edits": {"edits": lambda _, b: b.x.add_(1)},
    "x sorted": {"update": lambda _, b: b.x.copy_(b.x.flip(1))},
    "latents": {"update": lambda _, b: b.latents.values.neg_()},
    "reconstruction": {"update": lambda _, b: b.reconstruction.clamp_(max=0)},
    "losses": {"update": lambda _, b: b.token_losses.clean.zero_()},
    "scored": {"update": lambda _, b: b.scored.fill_(False)},
    "documents": {"update": lambda _, b: b.document_id.fill(0)},
    "calibration_mean": {"update": lambda _, b: b.calibration_mean.fill_(9)},
    "resized": {"update": lambda _, b: b.x.resize_(1)},
    "W_dec": {"update": lambda m, _: m._sae.W_dec.zero_()},
    "W_enc in init": {"init": lambda _, sae: sae.W_enc.data.mul_(3)},
    "W_dec in scores": {"scores": lambda _, env: env.sae.W_dec.data.zero_()},
    "and raises": {"update": lambda _, b: b.x.zero_() / 0 if False else (b.x.zero_(), 1 / 0)},
    "exit 0": {"update": stop(0)},
    "exit in init": {"init": stop(0)},
    "exit in scores": {"scores": stop(None)},
    "exit in units": {"units": stop(3)},
    "BaseException": {"update": throw(BaseException("odd"))},
    "GeneratorExit": {"scores": throw(GeneratorExit())},
    "unprintable": {"update": throw(Unprintable())},
    "unprintable in scores": {"scores": throw(Unprintable())},
    "objects": {"update": keep(np.array([object()]))},
    "texts": {"update": keep(np.array(["a"]))},
    "a set in a list": {"update": keep([{1, 2}])},
    "a dictionary of numbers": {"update": keep([{1: 2}])},
}
METRICS = ["fidelity", "bad", "sparsity", "geometry"]


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(installed().metrics, "bad", Bad)
    monkeypatch.setattr("saebench.running.passes.SAVE_EVERY", 0.0)


def measure(saes: Any, llama: Any, tokens: Any, results: Any, **more: Any) -> Any:
    options = {"hook": HOOK, "metrics": METRICS, "batch_size": 12, **more}
    return saebench.run(saes, model=str(llama), tokens=tokens, results=results, **options)


def scores(record: Any) -> list[Any]:
    return [s for s in record.scores if s["metric"] != "bad"]


@pytest.fixture(scope="module")
def expected(llama: Any, tokens: Any, two_saes: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("expected")
    names = [name for name in METRICS if name != "bad"]
    return [scores(record) for record in measure(two_saes, llama, tokens, folder, metrics=names)]


@pytest.mark.parametrize("deed", DEEDS)
def test_it_fails_alone(deed, expected, llama, tokens, two_saes, tmp_path, monkeypatch):
    monkeypatch.setattr(Bad, "deed", deed)
    records = measure(two_saes, llama, tokens, tmp_path)
    assert [scores(record) for record in records] == expected
    assert [set(record.errors) for record in records] == [{"bad"}, {"bad"}]
    assert all("\n" not in message for record in records for message in record.errors.values())


def _scores_of(*values: float, key: str = "s", **more: Any) -> list[Score]:
    return [Score.plain(f"{key}{i}", value, n=1, no_interval="exact", **more) for i, value in enumerate(values)]


def _units(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"unit_id": [0, 1], "cluster_id": [0, 1], **columns})


# Parts of a metric that no record can hold.
UNFIT: dict[str, dict[str, Any]] = {
    "4,001 scores": {"scores": lambda *_: _scores_of(*range(4001))},
    "a long key": {"scores": lambda *_: _scores_of(1, key="k" * 2000)},
    "a NUL in a key": {"scores": lambda *_: _scores_of(1, key="a\0b")},
    "half a character": {"scores": lambda *_: _scores_of(1, key="\ud800")},
    "deep details": {"details": lambda _: {"a": json.loads("[" * 40 + "]" * 40)}},
    "a large whole number": {"details": lambda _: {"a": 2**70}},
    "large details": {"details": lambda _: {str(i): "x" * 2**20 for i in range(3)}},
    "lists in units": {"units": lambda _: _units(a=[[1], [2]])},
    "units without clusters": {"units": lambda _: pd.DataFrame({"unit_id": [0]})},
    "a long suffix": {"files": lambda _: {"s" * 300: b""}},
}


@pytest.mark.parametrize("part", UNFIT)
def test_parts_that_no_record_can_hold_cost_their_metric_only(part, llama, tokens, two_saes, tmp_path, monkeypatch):
    monkeypatch.setattr("saebench.results.RECORD_BYTES", 2**21)
    for name, method in UNFIT[part].items():
        monkeypatch.setattr(Bad, name, method)
    [record] = measure(two_saes[0], llama, tokens, tmp_path, metrics=["bad", "sparsity"])
    assert set(record.errors) == {"bad"}
    check_message(record.errors["bad"])
    assert {s["metric"] for s in saebench.load_records(tmp_path)[0].scores} == {"sparsity"}


def test_a_score_that_no_record_can_hold_is_undefined_alone(llama, tokens, two_saes, tmp_path, monkeypatch):
    monkeypatch.setattr(Bad, "scores", lambda *_: _scores_of(1e101, 2, float("nan"), -1e200, 1e100))
    [record] = measure(two_saes[0], llama, tokens, tmp_path, metrics=["bad", "sparsity"])
    assert set(record.errors) == {"bad.s0", "bad.s2", "bad.s3"}
    assert [s["value"] for s in record.scores if s["metric"] == "bad"] == [2, 1e100]


def test_metrics_that_fit_alone_but_not_together_cost_the_last_only(llama, tokens, two_saes, tmp_path, monkeypatch):
    class Other(Bad):
        name = "other"

    monkeypatch.setitem(installed().metrics, "other", Other)
    monkeypatch.setattr(Bad, "scores", lambda *_: _scores_of(*range(2500)))
    [record] = measure(two_saes[0], llama, tokens, tmp_path, metrics=["bad", "sparsity", "other"])
    assert set(record.errors) == {"other"}


def test_an_sae_that_no_record_can_hold_fails_before_the_pass(llama, tokens, two_saes, tmp_path, monkeypatch):
    monkeypatch.setattr(Bad, "update", lambda *_: pytest.fail("ran the pass"))
    sae = saebench.load_sae(two_saes[0])
    sae = replace(sae, metadata=replace(sae.metadata, declared_l0=1e300))
    with pytest.raises(RunError) as caught:
        measure([sae, two_saes[1]], llama, tokens, tmp_path, metrics=["sparsity"], names=["odd", "fine"])
    assert [record.sae["name"] for record in caught.value.records] == ["fine"]
    check_message(str(caught.value.failures[0].error), "declared_l0", "1e+300")


def test_without_a_deed_it_scores(expected, llama, tokens, two_saes, tmp_path):
    records = measure(two_saes, llama, tokens, tmp_path)
    assert [record.errors for record in records] == [{}, {}]
    assert [scores(record) for record in records] == expected


def test_an_sae_in_memory_is_not_the_callers(llama, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(Bad, "deed", "W_enc in init")
    sae = saebench.testing.random_sae(seed=1)
    before = sae.sha256()
    [record] = measure(sae, llama, tokens, tmp_path)
    assert sae.sha256() == before
    assert set(record.errors) == {"bad"}


def test_the_exit_code_is_1_and_the_record_is_kept(llama, tokens, two_saes, tmp_path, monkeypatch):
    monkeypatch.setattr(Bad, "deed", "exit 0")
    flags = ["--model", str(llama), "--hook", HOOK, "--tokens", str(tokens), "--results", str(tmp_path)]
    done = CliRunner().invoke(
        main, ["run", "--sae", str(two_saes[0]), *flags, "--metric", "bad", "--metric", "sparsity"]
    )
    assert done.exit_code == 1
    assert "metric bad: SystemExit: 0" in done.stderr
    [record] = saebench.load_records(tmp_path)
    assert record.score("l0")["value"] == 8


def test_a_format_that_exits_costs_its_sae_only(llama, tokens, two_saes, tmp_path, monkeypatch):
    def load(path: Any, **options: Any) -> SAE:
        return sys.exit(0) if Path(path).name == "second" else saebench.load_sae(path, **options)

    monkeypatch.setattr("saebench.running.plan.load_sae", load)
    with pytest.raises(RunError) as caught:
        measure(two_saes, llama, tokens, tmp_path, metrics=["sparsity"])
    assert [record.sae["name"] for record in caught.value.records] == ["first"]
    [failure] = caught.value.failures
    check_message(str(failure.error), "second", "SystemExit")


def test_a_command_that_a_plugin_ends_exits_with_1(two_saes, tokens, llama, tmp_path, monkeypatch):
    monkeypatch.setattr("saebench.runner.execute", lambda *_: sys.exit(0))
    done = CliRunner().invoke(main, ["run", "--sae", str(two_saes[0]), "--results", str(tmp_path)])
    assert done.exit_code == 1
    assert "SystemExit" in done.stderr


# --- saved states and caches ------------------------------------------------------------------------------------------


def interrupted(saes: Any, llama: Any, tokens: Any, results: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of a run that stopped before its last batch."""
    from saebench.stream import Pass

    real, seen = Pass._update, []

    def update(self: Pass, *rest: Any) -> None:
        seen.append(self.done)
        if len(seen) == 4:
            raise KeyboardInterrupt
        real(self, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Pass, "_update", update)
        with pytest.raises(KeyboardInterrupt):
            measure(saes, llama, tokens, results, metrics=["fidelity", "sparsity"], batch_size=4)
    [path] = (results / ".state").glob("*.state")
    return path


def flip(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


def other_keys(data: bytes) -> bytes:
    body = unseal(data)
    assert body is not None
    return seal(body.replace(b"rows/sse", b"rows/ssx").replace(b'"tally"', b'"talle"'))


@pytest.mark.parametrize(
    "damage", [flip, other_keys, lambda data: data[:100], lambda data: b"", lambda data: seal(b"{}")]
)
def test_a_state_that_does_not_fit_is_absent(damage, llama, tokens, two_saes, tmp_path, monkeypatch):
    whole = measure(two_saes, llama, tokens, tmp_path / "whole", metrics=["fidelity", "sparsity"], batch_size=4)
    path = interrupted(two_saes, llama, tokens, tmp_path / "r", monkeypatch)
    assert os.path.getsize(path) > 1000
    path.write_bytes(damage(path.read_bytes()))
    found = measure(two_saes, llama, tokens, tmp_path / "r", metrics=["fidelity", "sparsity"], batch_size=4)
    assert [scores(record) for record in found] == [scores(record) for record in whole]
    assert [record.errors for record in found] == [{}, {}]
    assert not (tmp_path / "r" / ".state").exists()


@pytest.mark.parametrize("kind", ["calibration", "ablations"])
@pytest.mark.parametrize("change", ["keys", "shapes"])
def test_a_cache_file_that_does_not_fit_is_absent(kind, change, llama, tokens, two_saes, tmp_path, monkeypatch):
    from saebench.cache import load_from_cache, save_in_cache

    monkeypatch.setenv("SAEBENCH_CACHE", str(tmp_path / "cache"))
    whole = measure(two_saes[0], llama, tokens, tmp_path / "a", metrics=["fidelity"])
    [path] = (tmp_path / "cache" / kind).glob("*.safetensors")
    tensors = load_from_cache(path)
    assert tensors is not None
    odd = (
        {f"{n}x": t for n, t in tensors.items()}
        if change == "keys"
        else {n: t[None, :1] for n, t in tensors.items() if t.ndim}
    )
    save_in_cache(path, odd)
    again = measure(two_saes[0], llama, tokens, tmp_path / "b", metrics=["fidelity"])
    assert scores(again[0]) == scores(whole[0])
