"""Training runs from beginning to end: the model's own activations, several SAEs, two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import saebench
from saebench.training.checkpoints import RunFolder
from saebench.training.request import SaeSpec
from saebench.training.run import prepare, train

from .conftest import HOOK, Heard, same_weights
from .shared import Make, losses, weights


def test_activations_are_the_models_own(request_for: Make, llama: Path, ids: Path, tmp_path: Path) -> None:
    """Against Hugging Face's own hidden states: BOS and outliers left out, every other token once."""
    run = prepare(request_for(max_norm=1.3), tmp_path / "run", Heard())
    tokens = torch.from_numpy(np.load(ids))
    with torch.no_grad():
        states = AutoModelForCausalLM.from_pretrained(llama)(tokens, output_hidden_states=True).hidden_states[2]
    normal = (tokens != 1) & (tokens != 2)
    calibrated = np.unique(np.linspace(0, 199, 32).astype(int))
    few = states[calibrated][normal[calibrated]].norm(dim=-1).double()
    limit = 1.3 * np.median(few.numpy())
    wanted = states[normal & (states.norm(dim=-1) <= limit)]
    found = torch.cat([run.chunks.chunk(i) for i in range(run.chunks.per_epoch)])
    assert 0 < len(wanted) < int(normal.sum())
    assert found.shape == wanted.shape
    order, expected = (torch.argsort(t[:, 0].double() * 1e6 + t[:, 1].double()) for t in (found, wanted))
    torch.testing.assert_close(found[order], wanted[expected], rtol=1e-4, atol=1e-4)


def test_the_sae_is_a_saelens_checkpoint_that_says_where_it_belongs(whole: Path) -> None:
    sae = saebench.load_sae(whole / "topk-k4")
    assert (sae.d_in, sae.d_sae) == (32, 48)
    assert sae.metadata.hook == HOOK
    assert sae.metadata.model == "tiny-llama"
    assert sae.metadata.declared_l0 == 4
    steps = int(200 * 15 * 3 * 0.998) // 32
    assert sae.metadata.training_tokens == steps * 32
    assert losses(whole)[-1] < 0.9 * losses(whole)[0]
    assert not RunFolder(whole).checkpoint.exists()


def test_it_can_be_kept_in_half_the_space(whole: Path, tmp_path: Path) -> None:
    """For committed baselines: float16 on disk, float32 in memory, the same SAE to float16's rounding."""
    sae = saebench.load_sae(whole / "topk-k4")
    saebench.save_sae(sae.to("cpu", torch.float16), tmp_path / "half")
    assert {t.dtype for t in weights(tmp_path / "half").values()} == {torch.float16}
    again = saebench.load_sae(tmp_path / "half")
    assert again.W_enc.dtype == torch.float32
    assert again.metadata.dtype == "float16"
    torch.testing.assert_close(again.W_enc, sae.W_enc, rtol=1e-3, atol=1e-4)
    assert torch.equal(again.W_enc, sae.W_enc.half().float())


def test_saes_of_one_pass_are_those_of_passes_of_their_own(whole: Path, request_for: Make, tmp_path: Path) -> None:
    one = request_for(epochs=3).saes[0]
    others = (SaeSpec("pca", "pca", 64, 0, {"k": 4}), SaeSpec("other", "topk", 40, 1, {"k": 2}))
    train(request_for(epochs=3, saes=(others[0], one, others[1])), tmp_path / "run", Heard())
    assert same_weights(tmp_path / "run" / "topk-k4", whole / "topk-k4")


def test_two_processes_train_as_one(whole: Path, llama: Path, ids: Path, tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text(
        f'model = "{llama}"\nhook = "{HOOK}"\nepochs = 3\nbatch_size = 32\nchunk_contexts = 30\ncontext_batch = 8\n'
        'checkpoint_every = 15\nlog_every = 5\ndtype = "float32"\n'
        '[[saes]]\nrecipe = "topk"\nname = "topk-k4"\nwidth = 48\nk = 4\ndead_after = 500\n'
        '[[saes]]\nrecipe = "pca"\nwidth = 64\nk = 4\n'
    )
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "saebench",
               "train", str(toml), "--data", str(ids), "--out", str(out), "--device", "cpu"]  # fmt: skip
    # The launch failed in two of six runs of the whole suite, never alone; cause unknown. The same command resumes.
    for _ in range(2):
        done = subprocess.run(
            command, check=False, timeout=100, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_allclose(losses(out), losses(whole), rtol=1e-4)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_every_recipe_is_written_and_read_back(request_for: Make, tmp_path: Path) -> None:
    """The checkpoint is the trained SAE: the same latents and reconstructions on the model's own activations."""
    names = ["topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated"]
    with_k = {"topk", "batchtopk", "matryoshka", "jumprelu"}
    saes = tuple(SaeSpec(n, n, 64, 0, {"dtype": "float32"} | ({"k": 6} if n in with_k else {})) for n in names)
    run = prepare(request_for(saes=saes), tmp_path / "run", Heard())
    x = run.chunks.chunk(0)
    run.go(Heard())
    for lane in run.lanes:
        trained, read = lane.trainer.sae(), saebench.load_sae(tmp_path / "run" / lane.spec.name)
        z = trained.encode(x).dense()
        assert bool((z != 0).any())
        torch.testing.assert_close(read.encode(x).dense(), z, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(read(x), trained(x), rtol=1e-4, atol=1e-4)


def test_it_says_how_long_the_model_took(request_for: Make, tmp_path: Path) -> None:
    heard = Heard()
    train(request_for(), tmp_path / "run", heard)
    spent = RunFolder(tmp_path / "run").read_log()[-1]["seconds"]
    share = spent["activations"] / sum(spent.values())
    said = int(heard.messages[-1].split("took ")[1].split(" %")[0].split("%")[0])
    assert said == pytest.approx(100 * share, abs=5)


def test_the_log_is_json_lines(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[:-1]] == [*range(5, 280, 5), 280][: len(lines) - 1]
    assert {"loss", "explained_variance", "l0", "dead_fraction", "tokens_per_second"} <= lines[0].keys()
    assert lines[0]["l0"] <= 4
    assert set(lines[-1]["seconds"]) == {"activations", "topk-k4"}
