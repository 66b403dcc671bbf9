"""A run that was killed or interrupted goes on to the same bits; a finished one does nothing."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from saebench.errors import UsageError
from saebench.training.activations import Activations
from saebench.training.checkpoints import RunFolder
from saebench.training.run import train
from tests.raising import raises

from .conftest import HOOK, Heard, same_weights
from .shared import Make, losses


def test_killed_and_started_again_it_ends_with_the_same_bits(
    whole: Path, llama: Path, ids: Path, request_for: Make, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    toml = tmp_path / "run.toml"
    toml.write_text(
        f'model = "{llama}"\nhook = "{HOOK}"\nepochs = 3\nbatch_size = 32\nchunk_contexts = 30\ncontext_batch = 8\n'
        'checkpoint_every = 15\nlog_every = 5\ndtype = "float32"\n'
        '[[saes]]\nrecipe = "topk"\nname = "topk-k4"\nwidth = 48\nk = 4\ndead_after = 500\n'
    )
    command = [
        sys.executable,
        "-m",
        "saebench",
        "train",
        str(toml),
        "--data",
        str(ids),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    checkpoint = RunFolder(out).checkpoint
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was not killed in the middle"
    assert checkpoint.exists()
    heard = Heard()
    train(request_for(epochs=3), out, heard)
    assert heard.steps[0] > 0, "it began again instead of going on"
    assert same_weights(out / "topk-k4", whole / "topk-k4")
    assert losses(out) == losses(whole)


def test_ctrl_c_keeps_everything(whole: Path, request_for: Make, tmp_path: Path) -> None:
    """Pressed at any step, also while the buffer is half used: what follows is the same."""

    class Press(Heard):
        def progress(self, step: int, tokens_per_second: float, lines: list) -> None:
            super().progress(step, tokens_per_second, lines)
            if step == 35:
                os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(request_for(epochs=3), out, Press())
    heard = Heard()
    train(request_for(epochs=3), out, heard)
    assert heard.steps[0] == 35
    assert same_weights(out / "topk-k4", whole / "topk-k4")


def test_ctrl_c_while_activations_are_made(
    whole: Path, request_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pressed in the third chunk's first forward pass: no other is made, every step is kept, and what follows is the same."""
    passes = 0
    original = Activations._capture

    def press(self: Activations, contexts: np.ndarray) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes == 2 * 4 + 1:  # 30 contexts a chunk, 8 a pass
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, contexts)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Activations, "_capture", press)
        with pytest.raises(KeyboardInterrupt):
            train(request_for(epochs=3), out, Heard())
    assert passes == 9
    heard = Heard()
    train(request_for(epochs=3), out, heard)
    assert heard.steps[0] == 2 * 30 * 15 // 32
    assert same_weights(out / "topk-k4", whole / "topk-k4")


def test_a_finished_run_has_nothing_to_do(whole: Path, request_for: Make) -> None:
    heard = Heard()
    train(request_for(epochs=3), whole, heard)
    assert "is finished" in heard.messages[-1]
    assert not heard.steps


def test_a_finished_run_whose_sae_is_gone(request_for: Make, tmp_path: Path) -> None:
    train(request_for(), tmp_path / "run", Heard())
    shutil.rmtree(tmp_path / "run" / "topk-k4")
    with raises(UsageError, "--out", tmp_path / "run", "topk-k4"):
        train(request_for(), tmp_path / "run", Heard())


def test_another_runs_folder_is_left_alone(whole: Path, request_for: Make) -> None:
    before = (whole / "run.json").read_bytes()
    with raises(UsageError, whole, "seed is 0 there and 1 here"):
        train(request_for(epochs=3, seed=1), whole, Heard())
    assert (whole / "run.json").read_bytes() == before


def test_a_folder_of_something_else_is_left_alone(request_for: Make, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with raises(UsageError, tmp_path):
        train(request_for(), tmp_path, Heard())
