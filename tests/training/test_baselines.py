"""PCA and random weights against numpy, and the figures of a run without losses."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import saebench
from saebench.cli import main
from saebench.training.request import SaeSpec
from saebench.training.run import prepare, train

from .conftest import Heard, same_weights
from .shared import Make, command, no_sae, weights


def test_pca_is_the_covariances(request_for: Make, tmp_path: Path) -> None:
    """Against numpy on all activations: with every component kept it is exact, with k it keeps each token's k largest."""
    spec = SaeSpec("pca", "pca", 64, 0, {"k": 4})
    run = prepare(request_for(saes=(spec,)), tmp_path / "run", Heard())
    x = torch.cat([run.chunks.chunk(i) for i in range(run.chunks.per_epoch)]).double().numpy()
    run.go(Heard())
    sae = saebench.load_sae(tmp_path / "run" / "pca")
    # The run leaves up to a batch, and 0.2 %, of the activations out.
    mean = x.mean(0)
    np.testing.assert_allclose(sae.b_dec.numpy(), mean, atol=0.05 * x.std())
    _, vectors = np.linalg.eigh(np.cov(x.T))
    overlap = np.abs(vectors[:, ::-1].T[:3] @ sae.W_enc[:, :3].double().numpy()).diagonal()
    assert overlap.min() > 0.98
    few = torch.from_numpy(x[:50]).float()
    codes = (few.double().numpy() - sae.b_dec.double().numpy()) @ sae.W_enc[:, :32].double().numpy()
    smallest = np.sort(np.abs(codes), axis=1)[:, : 32 - 4]
    wanted = (smallest**2).sum(1)
    error = (few - sae(few)).double().pow(2).sum(1).numpy()
    np.testing.assert_allclose(error, wanted, rtol=1e-3)


def test_random_weights_are_unit_and_remade(request_for: Make, tmp_path: Path) -> None:
    spec = SaeSpec("random", "random", 48, 5, {"k": 4})
    for name in ("a", "b"):
        train(request_for(saes=(spec,)), tmp_path / name, Heard())
    assert same_weights(tmp_path / "a" / "random", tmp_path / "b" / "random")
    tensors = weights(tmp_path / "a" / "random")
    torch.testing.assert_close(tensors["W_dec"].norm(dim=1), torch.ones(48))
    torch.testing.assert_close(tensors["W_enc"], tensors["W_dec"].T)


def test_baselines_have_no_curves_and_no_figures(llama: Path, ids: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, command("pca", llama, ids, tmp_path / "run"))
    assert done.exit_code == 0, done.output
    assert "curves:" not in done.stderr
    assert not (tmp_path / "run" / "curves.png").exists()
    assert re.search(r"tokens/s: pca-k4$", done.stderr, re.MULTILINE)


def test_curves_are_drawn_where_an_sae_cannot_be_written(
    llama: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saebench.training.run.Trainer.sae", lambda self: no_sae())
    done = CliRunner().invoke(main, command("topk", llama, ids, tmp_path / "run"))
    assert done.exit_code == 1
    assert "1 of 1 SAE(s) could not be written" in done.stderr
    assert f"curves: {tmp_path / 'run' / 'curves.png'}" in done.stderr
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
