"""End to end on the real model, the real text and a real SAE."""

import json

import pytest
import torch
from click.testing import CliRunner

import saebench
from saebench.catalog import load_task
from saebench.cli import main
from saebench.corpus import task_contexts
from saebench.models import load_model
from tests.conftest import BUNDLED

pytestmark = pytest.mark.real
MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def model():
    return load_model(MODEL)


def test_the_demo_in_small(tmp_path):
    """The README's command, on 6 contexts; then again, which computes nothing."""
    command = ["run", "--sae", str(BUNDLED), "--limit", "6", "--json", "--results", str(tmp_path)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.stderr
    [record] = json.loads(done.stdout)
    scores = {s["key"]: s for s in record["scores"] if s["at"] is None}
    assert record["partial"]
    assert record["errors"] == {}
    assert scores["l0"]["value"] == 32
    assert 0.78 < scores["explained_variance"]["value"] < 0.86
    assert (
        scores["explained_variance"]["low"]
        < scores["explained_variance"]["value"]
        < scores["explained_variance"]["high"]
    )
    assert 0.05 < scores["ce_increase"]["value"] < 0.2
    assert scores["ce_zero"]["value"] == pytest.approx(
        torch.tensor(49152.0, dtype=torch.float64).log().item(), rel=1e-6
    )
    again = CliRunner().invoke(main, command)
    assert json.loads(again.stdout) == [record]
    assert "already measured" in again.stderr


def test_numbers_equal_plain_model_calls(model, tmp_path):
    """Two contexts through unmodified transformers calls: hidden states, a hook that replaces, a full softmax in float64."""
    [record] = saebench.run(BUNDLED, limit=2, results=tmp_path)
    sae = saebench.load_sae(BUNDLED)
    contexts = task_contexts(load_task("fidelity"), model.tokenizer).head(2)
    ids = torch.from_numpy(contexts.token_ids)
    assert ids.shape == (2, 128)
    assert (ids[:, 0] == model.tokenizer.bos_token_id).all()
    with torch.no_grad():
        x = model.model(ids, output_hidden_states=True).hidden_states[16]
    scored = torch.ones_like(ids, dtype=torch.bool)
    scored[:, 0] = False
    assert record.corpus["tokens"] == {"scored": 254, "outliers": 0, "special": 2}
    xh = torch.where(scored[..., None], sae(x), x)

    def losses(replacement: torch.Tensor | None) -> torch.Tensor:
        layer = model.model.model.layers[15]
        handle = layer.register_forward_hook(lambda m, a, out: out if replacement is None else replacement)
        with torch.no_grad():
            logp = model.model(ids).logits.double().log_softmax(-1)
        handle.remove()
        return logp

    clean, spliced = losses(None), losses(xh)
    predicted = scored[:, :-1]

    def ce(logp: torch.Tensor) -> float:
        return float(-logp[:, :-1].gather(2, ids[:, 1:, None])[..., 0][predicted].mean())

    a, b = x[scored].double(), xh[scored].double()
    kl = (clean.exp() * (clean - spliced)).sum(-1)[scored].mean()
    expected = {
        "ce_clean": ce(clean),
        "ce_spliced": ce(spliced),
        "kl": float(kl),
        "explained_variance": float(1 - ((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum()),
        "cosine": float(torch.nn.functional.cosine_similarity(a, b).mean()),
    }
    for key, value in expected.items():
        assert record.score(key)["value"] == pytest.approx(value, rel=1e-5), key


def test_the_task_is_the_text_it_names(model):
    """The corpus fingerprint of fidelity@1 under the demo model: a change of text, packing or tokenizer shows here."""
    contexts = task_contexts(load_task("fidelity@1"), model.tokenizer)
    assert contexts.token_ids.shape == (256, 128)
    assert len(set(contexts.document_id.tolist())) == 26
    assert contexts.fingerprint().startswith("a2329a33c1527541")
    text = model.tokenizer.decode(contexts.token_ids[0, 1:])
    assert text.startswith("Fellow-Citizens")


def test_probing_on_real_glosses(model, tmp_path, monkeypatch):
    """240 glosses of wordnet@1, end to end."""
    monkeypatch.setattr("saebench.plugins.metrics.probing.metric.KS", (5, 16))  # each further k takes seconds
    [record] = saebench.run(BUNDLED, task="probing/wordnet", limit=240, results=tmp_path)
    assert record.errors == {}
    assert record.corpus["labels"]["groups"]["train"] > 100
    scores = {s["key"]: s for s in record.scores if s["at"] is None}
    assert scores["majority_rate"]["value"] < 0.25 < scores["accuracy"]["value"]
    assert scores["random_sae_accuracy"]["value"] > scores["majority_rate"]["value"]
    assert scores["dense_accuracy"]["value"] > 0.5
    for key in ("accuracy", "balanced_accuracy", "auroc"):
        assert 0 <= scores[key]["low"] < scores[key]["value"] < scores[key]["high"] <= 1
    at = {s["at"] for s in record.scores if s["key"] == "mean_sae_accuracy"}
    assert at == {5, 16, 2304}
    chosen = [p for p in record.metrics["probing"]["details"]["probes"] if p["k"] == 5 and p["pool"] == "mean"]
    assert len(chosen) == 10
    assert all(len(p["latents"]) == len(p["weights"]) == 5 for p in chosen)
