"""Requests that cannot be trained are refused before anything is computed, and failures name what to change."""

from pathlib import Path

import numpy as np
import pytest
import torch

from saebench.errors import SaebenchError, UsageError
from saebench.training.checkpoints import RunFolder
from saebench.training.request import SaeSpec
from saebench.training.run import make_trainer, prepare, train
from tests.raising import raises

from .conftest import Heard
from .shared import Make


def test_too_little_text_says_how_many_epochs(request_for: Make, tmp_path: Path) -> None:
    with raises(UsageError, "3,000", "--epochs 4"):
        train(request_for(tokens=10_000), tmp_path / "run", Heard())
    assert not (tmp_path / "run").exists()


def test_text_that_is_read_twice_is_said(request_for: Make, tmp_path: Path) -> None:
    once, again = Heard(), Heard()
    train(request_for(), tmp_path / "once", once)
    train(request_for(max_norm=1.0), tmp_path / "again", again)  # half the tokens are longer than the median
    assert not any("once more" in m for m in once.messages)
    assert sum("(max_norm 1.0)" in m and "once more" in m for m in again.messages) == 1


def test_text_of_special_tokens_only_is_said(request_for: Make, tmp_path: Path) -> None:
    np.save(tmp_path / "bos.npy", np.ones((4, 16), dtype=np.int64))
    with raises(UsageError, "no token"):
        train(request_for(data=tmp_path / "bos.npy"), tmp_path / "run", Heard())


def test_what_does_not_fit_is_found_before_text_is_read(request_for: Make, tmp_path: Path) -> None:
    wide = SaeSpec("a", "topk", 48, 0, {"k": 50})
    with raises(UsageError, "k is 50"):
        prepare(request_for(saes=(wide,), data=tmp_path / "missing.npy"), tmp_path / "run", Heard())


def test_a_hook_the_model_lacks(request_for: Make, tmp_path: Path) -> None:
    with raises(UsageError, "blocks.9", "0 to 3"):
        train(request_for(hook="blocks.9.hook_resid_post"), tmp_path / "run", Heard())


def test_k_larger_than_width(request_for: Make, tmp_path: Path) -> None:
    with raises(UsageError, "k is 50", 48):
        train(request_for(saes=(SaeSpec("a", "topk", 48, 0, {"k": 50}),)), tmp_path / "run", Heard())


def test_an_unknown_setting_is_named(request_for: Make, tmp_path: Path) -> None:
    with raises(UsageError, "a: ", "topk", "'auxq'", "auxk"):
        train(request_for(saes=(SaeSpec("a", "topk", 48, 0, {"auxq": 5}),)), tmp_path / "run", Heard())


def test_a_setting_larger_than_torch_takes_is_named() -> None:
    spec = SaeSpec("a", "topk", 48, 0, {"k": 4, "dead_after": 2**63})
    with raises(UsageError, "a: ", "topk", "dead_after is 9223372036854775808", "2^63"):
        make_trainer(spec, 32, 10, "cpu")


def test_divergence_keeps_the_last_good_checkpoint(request_for: Make, tmp_path: Path) -> None:
    """A loss that is not finite ends the run; the checkpoint before it is whole and finite."""
    out = tmp_path / "run"
    run = prepare(request_for(epochs=3), out, Heard())
    trainer = run.lanes[0].trainer
    step = trainer.step

    def poisoned(x: torch.Tensor) -> dict:
        return step(torch.full_like(x, torch.inf) if run.step == 40 else x)

    trainer.step = poisoned  # type: ignore[method-assign]
    with raises(SaebenchError, "topk-k4: ", "checkpoint", "kept", "--out"):
        run.go(Heard())
    state = RunFolder(out).load()
    assert state is not None
    assert 0 < state["step"] <= 40
    assert all(bool(t.isfinite().all()) for t in state["saes"]["topk-k4"]["dictionary"].values())


def test_out_of_memory_suggests_a_batch(request_for: Make, tmp_path: Path) -> None:
    run = prepare(request_for(), tmp_path / "run", Heard())
    run.lanes[0].trainer.step = lambda x: {"loss": torch.empty(2**50)}  # type: ignore[method-assign]
    with raises(SaebenchError, "--batch-size 16"):
        run.go(Heard())


def test_what_is_no_lack_of_memory_is_not_called_one(request_for: Make, tmp_path: Path) -> None:
    run = prepare(request_for(), tmp_path / "run", Heard())
    run.lanes[0].trainer.step = lambda x: {"loss": x @ x[1:]}  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        run.go(Heard())


@pytest.mark.parametrize(("recipe", "width"), [("topk", 2**44), ("random", 2**44), ("topk", 2**62)])
def test_an_sae_that_does_not_fit_into_memory_is_named(recipe: str, width: int) -> None:
    with raises(SaebenchError, "a: ", f"{width:,}", "memory", "smaller width"):
        make_trainer(SaeSpec("a", recipe, width, 0, {"k": 4}), 32, 10, "cpu")
