"""A metric of a third-party package: intervals, paired comparison and ranks without a line of its own about them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from saebench import load_sae


@pytest.fixture(scope="module")
def results(site, two_saes, llama, tokens, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stranger")
    flags = [part for sae in two_saes for part in ("--sae", str(sae))]
    done = call(
        site, "run", *flags, "--model", llama, "--tokens", tokens, "--results", folder,
        "--metric", "norm_error", "--metric", "last_token",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "broken-example" in done.stderr  # the broken plugin beside it is named, and stops nothing
    return folder


def call(site: Path, *args: Any) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-m", "saebench", *map(str, args)], capture_output=True, text=True, env=env, cwd=site
    )


def test_its_scores_have_intervals(results, two_saes, llama, tokens):
    x = torch.from_numpy(np.load(tokens))
    with torch.no_grad():
        h = AutoModelForCausalLM.from_pretrained(llama)(x, output_hidden_states=True).hidden_states[2].double()
    for sae, path in zip(two_saes, sorted(results.rglob("tokens@1.json")), strict=True):
        scores = {s["key"]: s for s in json.loads(path.read_text())["scores"]}
        length = h.norm(dim=-1)
        rebuilt = load_sae(sae)(h.float()).double().norm(dim=-1)
        assert scores["norm_error"]["value"] == pytest.approx(
            float((rebuilt - length).abs().sum() / length.sum()), rel=1e-5
        )
        assert scores["norm_error"]["low"] < scores["norm_error"]["value"] < scores["norm_error"]["high"]


def test_one_of_its_metrics_acts_on_the_model(results, two_saes, llama, tokens):
    x, model = torch.from_numpy(np.load(tokens)), AutoModelForCausalLM.from_pretrained(llama)
    for path, record in zip(two_saes, sorted(results.rglob("tokens@1.json")), strict=True):
        sae = load_sae(path)

        def splice(module: Any, args: Any, output: Any, sae: Any = sae) -> Any:
            h = (output[0] if isinstance(output, tuple) else output).clone()
            h[:, -1] = sae(h[:, -1])
            return (h, *output[1:]) if isinstance(output, tuple) else h

        with torch.no_grad():
            clean = model(x).logits[:, -1].double().log_softmax(-1)
            handle = model.model.layers[1].register_forward_hook(splice)
            spliced = model(x).logits[:, -1].double().log_softmax(-1)
            handle.remove()
        expected = float((clean.exp() * (clean - spliced)).sum(-1).mean())
        [kl] = [s for s in json.loads(record.read_text())["scores"] if s["metric"] == "last_token"]
        assert kl["value"] == pytest.approx(expected, rel=1e-3)
        assert kl["low"] < kl["value"] < kl["high"]


def test_it_is_compared_pair_by_pair(site, results):
    done = call(site, "compare", "first", "second", "--results", results, "--score", "norm_error.norm_error", "--json")
    assert done.returncode == 0, done.stderr
    [pair] = json.loads(done.stdout)
    [line] = pair["scores"]
    difference = line["difference"]
    assert difference["low"] < difference["value"] == pytest.approx(line["b"] - line["a"])
    assert difference["n"] == 24


def test_it_is_ranked(site, results):
    done = call(site, "leaderboard", results, "--format", "json", "--score", "norm_error")
    assert done.returncode == 0, done.stderr
    assert '"rank": 1' in done.stdout
    table = call(site, "leaderboard", results, "--score", "norm_error").stdout
    assert "norm_error ↓" in table
    assert "#1" in table
