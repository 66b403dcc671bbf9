"""Edits in the pass: a metric's own streams, their losses, and unchanged results of the other metrics."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import saebench
from saebench import SAE, Batch, Env, Metric, Score
from saebench.lens import LensWork
from saebench.metric import Edit, Rows
from saebench.models import load_config
from saebench.registry import installed
from saebench.running.cost import model_size
from saebench.running.dry_run import dry_runs
from saebench.running.request import Request
from saebench.testing import check_metric
from tests.conftest import HOOK
from tests.raising import raises

INSIDE = "blocks.1.hook_mlp_out"


class Edits(Metric):
    """Sums of losses under four edits: none, zero, a shift of every context, and a shift of each context twice, reversed."""

    name = "edits"
    needs = frozenset({"x", "token_losses"})
    edit_rows = 5

    def __init__(self, sae: SAE) -> None:
        self.rows = Rows()

    def edits(self, batch: Batch) -> list[Edit]:
        source = torch.arange(len(batch.x), device=batch.x.device).flip(0).repeat_interleave(2)
        return [
            Edit("none", batch.x, hidden=True),
            Edit("zero", torch.zeros_like(batch.x)),
            Edit("shift", batch.x + 0.5),
            Edit("twice", batch.x[source] + 0.5, source),
        ]

    def update(self, batch: Batch) -> None:
        losses, edited, per = batch.token_losses, batch.edited, batch.per_context
        at = losses.predicted
        twice = torch.zeros_like(losses.clean).index_add_(0, edited["twice"].source, edited["twice"].cross_entropy)
        self.rows.add(
            batch, n=per(torch.ones_like(losses.clean), at), clean=per(losses.clean, at), zero=per(losses.zero, at),
            none=per(edited["none"].cross_entropy, at), zeroed=per(edited["zero"].cross_entropy, at),
            shift=per(edited["shift"].cross_entropy, at), twice=per(twice, at), kl=per(edited["shift"].kl),
            none_kl=per(edited["none"].kl), tokens=per(torch.ones_like(losses.clean)),
        )  # fmt: skip

    def merge(self, other: "Edits") -> None:
        self.rows.merge(other.rows)

    def units(self) -> Any:
        return self.rows.frame()

    def scores(self, env: Env) -> list[Score]:
        means = [Score.ratio(key, key, "n") for key in ("clean", "zero", "none", "zeroed", "shift", "twice")]
        return [*means, Score.ratio("kl", "kl", "tokens"), Score.ratio("none_kl", "none_kl", "tokens")]


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(installed().metrics, "edits", Edits)


def measure(saes: Any, llama: Any, tokens: Any, results: Any, **more: Any) -> list[Any]:
    options = {"hook": HOOK, "metrics": ["edits", "fidelity"], **more}
    return saebench.run(saes, model=str(llama), tokens=tokens, results=results, **options)


def values(record: Any) -> dict[str, float]:
    return {s["key"]: s["value"] for s in record.scores if s["metric"] == "edits"}


@pytest.mark.parametrize("hook", [HOOK, "blocks.2.hook_resid_pre", INSIDE, "blocks.1.hook_resid_mid"])
def test_an_edit_that_changes_nothing_gives_the_clean_losses_bit_for_bit(hook, llama, tokens, two_saes, tmp_path):
    for record in measure(two_saes, llama, tokens, tmp_path, hook=hook):
        assert record.errors == {}
        units = record.units("edits")
        assert (units.none == units.clean).all()
        assert (units.none_kl == 0).all()
        if hook in (INSIDE, "blocks.1.hook_resid_mid"):
            assert (units.zeroed == units.zero).all()
        else:  # the shared row of forward/ablation.py: equal up to the rounding of one matrix product
            assert units.zeroed.to_numpy() == pytest.approx(units.zero.to_numpy(), rel=1e-6)


@pytest.mark.parametrize("hook", [HOOK, INSIDE])
def test_losses_equal_plain_hooked_forward_passes(hook, llama, tokens, two_saes, tmp_path):
    [record] = measure(two_saes[0], llama, tokens, tmp_path, hook=hook, batch_size=7)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float64)
    ids = torch.from_numpy(np.load(tokens))
    module = model.model.layers[1] if hook == HOOK else model.model.layers[1].mlp

    def log_probabilities(shift: float) -> torch.Tensor:
        handle = module.register_forward_hook(lambda m, a, out: out + shift)
        with torch.no_grad():
            found = model(ids).logits.log_softmax(-1)
        handle.remove()
        return found

    clean, shifted = log_probabilities(0.0), log_probabilities(0.5)
    ce = -shifted[:, :-1].gather(2, ids[:, 1:, None])[..., 0].mean()
    found = values(record)
    assert found["shift"] == pytest.approx(float(ce), rel=2e-5)
    assert found["twice"] == pytest.approx(2 * float(ce), rel=2e-5)
    assert found["kl"] == pytest.approx(float((clean.exp() * (clean - shifted)).sum(-1).mean()), rel=2e-4)


def test_company_and_batch_size_change_nothing(llama, tokens, two_saes, tmp_path, monkeypatch):
    [whole] = measure(two_saes[0], llama, tokens, tmp_path / "whole", batch_size=24)
    [plain] = measure(two_saes[0], llama, tokens, tmp_path / "plain", batch_size=24, metrics=["fidelity"])
    assert [s for s in whole.scores if s["metric"] == "fidelity"] == plain.scores
    real, sizes = saebench.subject.Subject.fork, []

    def fork(self: Any, ids: torch.Tensor, *rest: Any) -> Any:
        sizes.append(len(ids))
        if len(ids) > 5:
            torch.empty(2**50)
        return real(self, ids, *rest)

    monkeypatch.setattr("saebench.subject.Subject.fork", fork)
    for record in measure(two_saes, llama, tokens, tmp_path / "halved", batch_size=16)[:1]:
        assert record.runs[0]["provenance"]["batch_size"] == 4
        assert values(record) == pytest.approx(values(whole), rel=1e-5, abs=1e-7)


def test_edits_alone_need_no_sae_streams(llama, tokens, two_saes, tmp_path, monkeypatch):
    class Alone(Edits):
        needs = frozenset({"x"})

        def update(self, batch: Batch) -> None:
            assert [e.hidden is not None for e in batch.edited.values()] == [True, False, False, False]
            self.rows.add(batch, n=batch.per_context(batch.scored.double()),
                          shift=batch.per_context(batch.edited["shift"].kl))  # fmt: skip

        def scores(self, env: Env) -> list[Score]:
            return [Score.ratio("kl", "shift", "n")]

    [whole] = measure(two_saes[0], llama, tokens, tmp_path / "whole")
    monkeypatch.setitem(installed().metrics, "edits", Alone)
    [alone] = measure(two_saes[0], llama, tokens, tmp_path / "alone", metrics=["edits"])
    assert alone.errors == {}
    assert values(alone)["kl"] == pytest.approx(values(whole)["kl"], rel=1e-5)


BAD = {
    "rows": lambda edit: replace(edit, rows=edit.rows[..., :3]),
    "finite": lambda edit: replace(edit, rows=edit.rows * torch.nan),
    "context": lambda edit: replace(edit, source=torch.arange(len(edit.rows)) + 1),
    "edit_rows": lambda edit: replace(
        edit, rows=edit.rows.repeat(9, 1, 1), source=torch.zeros(9 * len(edit.rows)).long()
    ),
    "same name": lambda edit: replace(edit, name="none"),
}


@pytest.mark.parametrize("problem", BAD)
def test_a_bad_edit_fails_its_metric_alone(problem, llama, tokens, two_saes, tmp_path, monkeypatch):
    good = Edits.edits
    monkeypatch.setattr(
        Edits, "edits", lambda self, batch: [*good(self, batch)[:2], BAD[problem](good(self, batch)[2])]
    )
    [record] = measure(two_saes[0], llama, tokens, tmp_path)
    assert set(record.errors) == {"edits"}
    assert problem in record.errors["edits"]
    assert record.score("explained_variance", "fidelity")["value"] is not None


def test_a_dry_run_counts_experiments(llama, tokens, two_saes, monkeypatch):
    class Declared(Edits):
        name, edit_rows, uses_lens = "declared", 0, True

        @classmethod
        def lens_work(cls, d_sae: int, length: int) -> LensWork:
            return LensWork(whole=10 * length, above=20, logits=30)

    class Undeclared(Edits):
        name, edit_rows, uses_lens = "undeclared", 0, True

    for kind in (Declared, Undeclared):
        monkeypatch.setitem(installed().metrics, kind.name, kind)
    plan, alone = (
        dry_runs(Request(two_saes, model=str(llama), tokens=tokens, hook=HOOK, metrics=metrics))[0]
        for metrics in (["declared", "undeclared", "fidelity"], ["fidelity"])
    )
    size = model_size(load_config(str(llama)))
    layers, length = 4, np.load(tokens).shape[1]
    expected = 10 * length * layers * size.block + 20 * (layers - 2) * size.block + 30 * size.head
    assert plan.groups[0].cost.stages["experiments: declared"] == pytest.approx(2 * expected)
    assert plan.groups[0].seconds > alone.groups[0].seconds
    assert plan.undeclared == ["undeclared"]
    assert "experiments: declared" in "\n".join(plan.lines())
    assert "undeclared does not declare" in "\n".join(plan.lines())


def test_a_dry_run_counts_edits(llama, tokens, two_saes):
    def stages(hook: str, metrics: list[str]) -> dict[str, float]:
        [plan] = dry_runs(Request(two_saes, model=str(llama), tokens=tokens, hook=hook, metrics=metrics))
        return {name: macs / plan.groups[0].cost.forward for name, macs in plan.groups[0].cost.stages.items()}

    with_edits, without = stages(HOOK, ["edits", "fidelity"]), stages(HOOK, ["fidelity"])
    per_sae = without["above the hook, once per SAE"] / 2
    assert with_edits.pop("edits") == pytest.approx(2 * 5 * per_sae)
    assert with_edits == without
    inside = stages(INSIDE, ["edits", "fidelity"])
    below = 1 - inside["above the hook, once per SAE"] / 2
    assert inside["edits"] == pytest.approx(2 * 5 * (1 - below) + below)  # and once more up to the hook point


def test_check_metric_covers_edits(monkeypatch):
    check_metric(Edits, ignores_sae=True)
    good = Edits.edits

    def first_context_for_all(self: Edits, batch: Batch) -> list[Edit]:
        rows = batch.x[:1].expand(2 * len(batch.x), -1, -1)
        return [*good(self, batch)[:3], Edit("twice", rows, torch.arange(len(batch.x)).repeat(2))]

    monkeypatch.setattr(Edits, "edits", first_context_for_all)
    with raises(AssertionError, "twice", "in single contexts"):
        check_metric(Edits, ignores_sae=True)
