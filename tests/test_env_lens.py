"""`env.lens` in a run: made for metrics that declare it, resumable, and left out where there is no model."""

from typing import Any

import pytest
import torch

import saebench
from saebench import SAE, Env, Metric, Score
from saebench.registry import installed
from saebench.running.scoring import finish_metric
from saebench.testing import random_sae
from tests.conftest import HOOK

ASKED: list[int] = []
STOP_AT: set[int] = set()


class Norms(Metric):
    """Mean norm of an activation over four contexts of one token each, one unit per context."""

    name = "norms"
    uses_lens = True

    def __init__(self, sae: SAE) -> None:
        self.d_in = sae.d_in

    def scores(self, env: Env) -> list[Score]:
        lens = env.lens
        assert lens is not None

        def one(token: int) -> float:
            if token in STOP_AT:
                raise KeyboardInterrupt
            ASKED.append(token)
            return float(lens.capture(torch.tensor([[token]])).x.norm())

        found = lens.units("norms", [3, 4, 5, 6], one)
        return [Score.plain("norm", sum(found) / 4, n=4, no_interval="exact")]


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(installed().metrics, "norms", Norms)
    ASKED.clear()
    STOP_AT.clear()


def measure(saes: Any, llama: Any, tokens: Any, results: Any, **more: Any) -> list[Any]:
    return saebench.run(saes, model=str(llama), tokens=tokens, results=results, hook=HOOK, metrics=["norms"], **more)


def test_an_interrupted_metric_repeats_no_finished_unit(llama, tokens, two_saes, tmp_path):
    [whole] = measure(two_saes[0], llama, tokens, tmp_path / "whole")
    ASKED.clear()
    STOP_AT.add(5)
    with pytest.raises(KeyboardInterrupt):
        measure(two_saes, llama, tokens, tmp_path / "r")
    assert ASKED == [3, 4]
    STOP_AT.clear()
    first, second = measure(two_saes, llama, tokens, tmp_path / "r")
    assert ASKED == [3, 4, 5, 6, 3, 4, 5, 6]  # the second SAE's units are its own
    assert first.score("norm")["value"] == second.score("norm")["value"] == whole.score("norm")["value"]
    assert not (tmp_path / "r" / ".state").exists()
    measure(two_saes[0], llama, tokens, tmp_path / "r", force=True)
    assert ASKED[8:] == [3, 4, 5, 6]


def test_without_a_model_it_is_an_error_of_that_metric():
    found = finish_metric(Norms(random_sae()), None, Env(random_sae()))
    assert found.scores == []
    assert "language model" in found.errors["norms"]
