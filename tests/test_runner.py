"""Running: resume, invariance to how the work is split, failures that cost nobody else their numbers."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import saebench
from saebench.errors import UsageError
from saebench.runner import RunError
from saebench.sae import SAE
from saebench.testing import constant_sae, identity_sae, random_sae
from tests.conftest import write_sae
from tests.raising import raises
from tests.running import arguments, files, measure, same, values, without_timings


def test_identity_and_mean_predictor_score_what_they_must(llama, tokens, tmp_path):
    [identity] = measure(identity_sae(32), llama, tokens, tmp_path)
    assert identity.score("explained_variance")["value"] == 1
    assert identity.score("loss_recovered_zero")["value"] == pytest.approx(1, abs=1e-6)
    assert identity.score("loss_recovered_mean")["value"] == pytest.approx(1, abs=1e-6)
    assert identity.score("kl")["value"] == pytest.approx(0, abs=1e-6)
    ids = torch.from_numpy(np.load(tokens))
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        x = model(ids, output_hidden_states=True).hidden_states[2]
    [mean] = measure(constant_sae(x.reshape(-1, 32).double().mean(0).float()), llama, tokens, tmp_path)
    assert mean.score("explained_variance")["value"] == pytest.approx(0, abs=1e-9)
    assert mean.score("l0")["value"] == 0
    assert mean.score("dead_fraction")["value"] == 1


def test_numbers_equal_a_plain_float64_computation(llama, tokens, tmp_path):
    """Independent of the fork, the chunked head, the shared ablation rows and the streaming sums: plain model calls."""
    from transformers import AutoModelForCausalLM

    sae = random_sae(seed=3)
    [record] = measure(sae, llama, tokens, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float64)
    ids = torch.from_numpy(np.load(tokens))

    def losses(replacement: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        layer = model.model.layers[1]
        handle = layer.register_forward_hook(lambda m, a, out: replacement) if replacement is not None else None
        with torch.no_grad():
            logp = model(ids).logits.log_softmax(-1)
        if handle:
            handle.remove()
        return -logp[:, :-1].gather(2, ids[:, 1:, None])[..., 0].mean(), logp

    with torch.no_grad():
        x = model(ids, output_hidden_states=True).hidden_states[2]
    xh = sae(x.float()).double()
    clean, logp = losses(None)
    spliced, logq = losses(xh)
    zero, _ = losses(torch.zeros_like(x))
    mean, _ = losses(x.reshape(-1, 32).mean(0).expand_as(x))
    flat = x.reshape(-1, 32)
    expected = {
        "explained_variance": 1 - ((x - xh) ** 2).sum() / ((flat - flat.mean(0)) ** 2).sum(),
        "ce_clean": clean,
        "ce_spliced": spliced,
        "ce_zero": zero,
        "ce_mean": mean,
        "loss_recovered_zero": (zero - spliced) / (zero - clean),
        "loss_recovered_mean": (mean - spliced) / (mean - clean),
        "kl": (logp.exp() * (logp - logq)).sum(-1).mean(),
    }
    for key, value in expected.items():
        assert record.score(key)["value"] == pytest.approx(float(value), rel=2e-5), key


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_batch_size_changes_nothing(batch_size, llama, tokens, two_saes, tmp_path):
    whole = measure(two_saes, llama, tokens, tmp_path / "whole", batch_size=24)
    parts = measure(two_saes, llama, tokens, tmp_path / "parts", batch_size=batch_size)
    for a, b in zip(whole, parts, strict=True):
        same(a, b)


def test_order_of_contexts_changes_nothing(llama, tokens, two_saes, tmp_path):
    order = np.random.default_rng(1).permutation(24)
    shuffled = tmp_path / "shuffled.npy"
    np.save(shuffled, np.load(tokens)[order])
    [a] = measure(two_saes[0], llama, tokens, tmp_path / "a")
    [b] = measure(two_saes[0], llama, shuffled, tmp_path / "b")
    same(a, b)
    assert a.fingerprint != b.fingerprint


def test_company_changes_nothing(llama, tokens, two_saes, tmp_path):
    [alone] = measure(two_saes[0], llama, tokens, tmp_path / "alone")
    together = measure(two_saes, llama, tokens, tmp_path / "together")
    same(alone, together[0])


# Metrics of the pass, and metrics whose experiments the first rank runs after it.
_METRICS = ["fidelity", "sparsity", "effects_small", "steering_small"]
_SETTINGS = [
    "effects_small.latents=3", "effects_small.horizon=4", "steering_small.latents=3", "steering_small.contexts=4",
    "steering_small.length=4", "steering_small.fewest=2",
]  # fmt: skip


def test_two_ranks_equal_one(llama, tokens, two_saes, tmp_path):
    one = measure(two_saes, llama, tokens, tmp_path / "one", metrics=_METRICS, settings=_SETTINGS)
    assert all({s["metric"] for s in record.scores} == set(_METRICS) for record in one)
    more = [part for name in _METRICS for part in ("--metric", name)]
    more += [part for setting in _SETTINGS for part in ("--set", setting)]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "saebench"]
    done = subprocess.run([sys.executable, *command, *arguments(two_saes, llama, tokens, tmp_path / "two"), *more],
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=250)  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = saebench.load_records([tmp_path / "two"])
    by_name = {r.sae["name"]: r for r in two}
    for record in one:
        other = by_name[record.sae["name"]]
        same(record, other)
        assert other.runs[0]["provenance"]["ranks"] == 2
        units = record.units("fidelity"), other.units("fidelity")
        assert (units[0].unit_id == units[1].unit_id).all()
        assert record.fingerprint == other.fingerprint


_OWN_FOLDERS = """
import os, sys, saebench
rank, (root, model, tokens, *saes) = os.environ["RANK"], sys.argv[1:]
records = saebench.run(saes, model=model, tokens=tokens, results=os.path.join(root, rank))
assert len(records) == (2 if rank == "0" else 0), records
"""


def test_rank_0_plans_for_all(llama, tokens, two_saes, tmp_path):
    """Ranks whose results folders hold other things: one SAE done and one not, one damaged, one done with other numbers."""
    one = measure(two_saes, llama, tokens, tmp_path / "one")
    measure(two_saes[0], llama, tokens, tmp_path / "0", metrics=["fidelity"])
    first, second = (Path(r.path).relative_to(tmp_path / "one") for r in one)
    for path, text in ((first, "damaged"), (second, one[1].path.read_text())):
        (tmp_path / "1" / path).parent.mkdir(parents=True)
        (tmp_path / "1" / path).write_text(text)
    before = files(tmp_path / "1")
    script = tmp_path / "script.py"
    script.write_text(_OWN_FOLDERS)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([sys.executable, *command, str(tmp_path), str(llama), str(tokens), *map(str, two_saes)],
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=250)  # fmt: skip
    assert done.returncode == 0, done.stderr
    by_name = {r.sae["name"]: r for r in saebench.load_records([tmp_path / "0"])}
    for record in one:
        same(record, by_name[record.sae["name"]])
    assert [run["provenance"]["ranks"] for run in by_name["first"].runs] == [1, 2]
    assert {k: v for k, v in files(tmp_path / "1").items() if not k.startswith(".state")} == before


def test_second_run_computes_nothing(llama, tokens, two_saes, tmp_path, monkeypatch):
    measure(two_saes, llama, tokens, tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr("saebench.stream.Pass.run", _must_not_be_called)
    measure(two_saes, llama, tokens, tmp_path)
    assert files(tmp_path) == before


def _must_not_be_called(*_: Any) -> None:
    raise AssertionError("a finished measurement was computed again")


def test_new_metric_computes_only_that(llama, tokens, two_saes, tmp_path, monkeypatch):
    [first] = measure(two_saes[0], llama, tokens, tmp_path, metrics=["fidelity"])
    fidelity = values(first)
    monkeypatch.setattr("saebench.plugins.metrics.fidelity.Fidelity.update", _must_not_be_called)
    monkeypatch.setattr("saebench.subject.Subject.fork", _must_not_be_called)  # sparsity needs no losses: it stops
    [second] = measure(two_saes[0], llama, tokens, tmp_path, metrics=["sparsity"])
    assert second.path == first.path
    assert set(second.metrics) == {"fidelity", "sparsity"}
    assert {k: v for k, v in values(second).items() if k[0] == "fidelity"} == fidelity
    assert [run["metrics"] for run in second.runs] == [["fidelity"], ["sparsity"]]


def test_two_runs_on_one_record_at_a_time_lose_nothing(llama, tokens, two_saes, tmp_path, monkeypatch):
    """The second begins and ends while the first, which has read what there is, still computes."""
    original = saebench.running.finish.finish_metric

    def meanwhile(*args: Any) -> Any:
        monkeypatch.undo()
        measure(two_saes[0], llama, tokens, tmp_path, metrics=["sparsity"])
        return original(*args)

    monkeypatch.setattr("saebench.running.finish.finish_metric", meanwhile)
    [record] = measure(two_saes[0], llama, tokens, tmp_path, metrics=["fidelity"])
    [there] = saebench.load_records([tmp_path])
    assert record.to_json() == there.to_json()
    assert set(there.metrics) == {"fidelity", "sparsity"}
    assert [run["metrics"] for run in there.runs] == [["sparsity"], ["fidelity"]]
    assert there.score("l0")["value"] == 8
    assert there.units("sparsity") is not None


def test_force_computes_again_and_keeps_the_other_metrics(llama, tokens, two_saes, tmp_path):
    [first] = measure(two_saes[0], llama, tokens, tmp_path)
    [second] = measure(two_saes[0], llama, tokens, tmp_path, metrics=["sparsity"], force=True)
    assert second.path == first.path
    assert set(second.metrics) == {"fidelity", "sparsity", "geometry"}
    assert [run["metrics"] for run in second.runs][-1] == ["sparsity"]
    same(first, second)


def test_another_variant_never_overwrites(llama, tokens, two_saes, tmp_path):
    [plain] = measure(two_saes[0], llama, tokens, tmp_path)
    before = plain.path.read_bytes()
    [partial] = measure(two_saes[0], llama, tokens, tmp_path, limit=6)
    assert partial.path != plain.path
    assert plain.path.read_bytes() == before
    assert partial.partial
    assert partial.corpus["contexts"] == 6
    other = tmp_path / "other.npy"
    np.save(other, np.load(tokens)[:12])
    [elsewhere] = measure(two_saes[0], llama, other, tmp_path)
    assert elsewhere.path not in (plain.path, partial.path)
    assert plain.path.read_bytes() == before


def test_a_failing_sae_costs_the_others_nothing(llama, tokens, two_saes, tmp_path):
    narrow = write_sae(tmp_path / "narrow", random_sae(16, 32))
    deep = write_sae(tmp_path / "deep", random_sae(seed=5), hook="blocks.9.hook_resid_post")
    misread = write_sae(tmp_path / "misread", replace(random_sae(seed=6), b_enc=torch.full((64,), -100.0)))
    with pytest.raises(RunError) as caught:
        saebench.run([narrow, two_saes[0], deep, misread, tmp_path / "missing"], model=str(llama), tokens=tokens,
                     results=tmp_path / "r")  # fmt: skip
    assert [r.sae["name"] for r in caught.value.records] == ["first"]
    reasons = {f.name: str(f.error) for f in caught.value.failures}
    assert "16" in reasons["narrow"]
    assert "--hook" in reasons["narrow"]
    assert "layers 0 to 3" in reasons["deep"]
    assert "0.0 latents fire per token" in reasons["misread"]
    assert "no such file" in reasons["missing"]
    assert all("\n" not in reason for reason in reasons.values())


@pytest.mark.parametrize("cold", [True, False], ids=["at calibration", "in the pass"])
def test_non_finite_activations_are_an_error_entry(cold, llama, tokens, two_saes, tmp_path, monkeypatch):
    from saebench.subject import Subject

    def broken(self: Subject, ids: torch.Tensor, *rest: Any) -> Any:
        out = original(self, ids, *rest)
        return torch.full_like(out[0], torch.nan), torch.full_like(out[1], torch.nan)

    original = Subject.capture
    monkeypatch.setattr(Subject, "capture", broken)
    if cold:
        monkeypatch.setenv("SAEBENCH_CACHE", str(tmp_path / "cold"))
    else:
        monkeypatch.undo()
        measure(two_saes[0], llama, tokens, tmp_path / "warm")
        monkeypatch.setattr(Subject, "capture", broken)
    [record] = measure(two_saes[0], llama, tokens, tmp_path)
    assert {score["metric"] for score in record.scores} == {"geometry"}  # needs no activations
    assert "not finite" in record.errors["fidelity"]
    assert "NaN" not in record.path.read_text()


def test_a_failing_metric_keeps_the_others(llama, tokens, two_saes, tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("no good")

    monkeypatch.setattr("saebench.plugins.metrics.sparsity.Sparsity.update", fail)
    [record] = measure(two_saes[0], llama, tokens, tmp_path)
    assert record.errors == {"sparsity": "ZeroDivisionError: no good"}
    assert {s["metric"] for s in record.scores} == {"fidelity", "geometry"}
    monkeypatch.undo()
    [again] = measure(two_saes[0], llama, tokens, tmp_path)
    assert again.errors == {}
    assert again.runs[-1]["metrics"] == ["sparsity"]


def test_out_of_memory_halves_the_batch(llama, tokens, two_saes, tmp_path, monkeypatch):
    from saebench.subject import Subject

    sizes = []

    def fork(self: Subject, ids: torch.Tensor, *rest: Any) -> Any:
        sizes.append(len(ids))
        if len(ids) > 5:
            torch.empty(2**50)
        return original(self, ids, *rest)

    original = Subject.fork
    monkeypatch.setattr(Subject, "fork", fork)
    [record] = measure(two_saes[0], llama, tokens, tmp_path / "small", batch_size=16)
    monkeypatch.undo()
    [whole] = measure(two_saes[0], llama, tokens, tmp_path / "whole")
    assert max(s for s in sizes if s != 16 and s != 8 and s != 2) <= 5
    assert record.runs[0]["provenance"]["batch_size"] == 4
    same(whole, record)


def test_records_never_hold_a_local_secret(llama, tokens, two_saes, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-token")
    [record] = measure(two_saes[0], llama, tokens, tmp_path)
    assert "canary-token" not in record.path.read_text()


def test_request_errors_are_usage_errors(llama, tokens, two_saes, tmp_path):
    with raises(UsageError, "fidelty", "'fidelity'"):
        measure(two_saes[0], llama, tokens, tmp_path, metrics=["fidelty"])
    with raises(RunError, "'first'"):
        measure([two_saes[0], two_saes[0]], llama, tokens, tmp_path, metrics=["geometry"])
    with raises(UsageError, "--limit", 0):
        measure(two_saes[0], llama, tokens, tmp_path, limit=0)
    with raises(UsageError, "--sae"):
        measure([], llama, tokens, tmp_path)
    with raises(RunError, "--hook"):
        measure(random_sae(seed=1), llama, tokens, tmp_path, hook=None)


def test_an_sae_made_in_memory_needs_no_file(llama, tokens, tmp_path):
    sae: SAE = random_sae(seed=4)
    [record] = measure(sae, llama, tokens, tmp_path, names=["mine"])
    assert record.sae["name"] == "mine"
    assert record.sae["path"] is None
    assert record.sae["sha256"] == sae.sha256()


def test_time_is_not_part_of_the_result(llama, tokens, two_saes, tmp_path):
    [a] = measure(two_saes[0], llama, tokens, tmp_path / "a")
    time.sleep(1.1)
    [b] = measure(two_saes[0], llama, tokens, tmp_path / "b")
    assert without_timings(a.path) == without_timings(b.path)
    assert files(a.path.parent).keys() == files(b.path.parent).keys()
