"""The precision of products follows from the processor's units, stands in run.json, and stays with a run."""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saebench.arithmetic.precision import processor_name, product_dtype
from saebench.errors import UsageError
from saebench.recipe import Settings
from saebench.registry import installed
from saebench.running.provenance import provenance
from saebench.training.checkpoints import RunFolder
from saebench.training.estimate import estimate
from saebench.training.request import SaeSpec, TrainRequest
from saebench.training.run import train
from saebench.training.trainer import Trainer
from tests.raising import raises

from .conftest import Heard, same_weights

Make = Callable[..., TrainRequest]


@pytest.mark.parametrize(
    ("machine", "avx512_bf16", "amx", "onednn", "wanted"),
    [
        ("x86_64", False, False, True, "float32"),  # AVX-512 without units: oneDNN emulates
        ("x86_64", False, False, False, "float32"),
        ("x86_64", True, False, True, "bfloat16"),
        ("AMD64", False, True, True, "bfloat16"),
        ("aarch64", False, False, True, "bfloat16"),
        ("aarch64", False, False, False, "float32"),
    ],
)
def test_units_decide(
    machine: str, avx512_bf16: bool, amx: bool, onednn: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    assert product_dtype("cpu") == wanted


def _on(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """From here on the machine has, or lacks, bfloat16 units."""
    for module in ("training.choices", "training.trainer"):
        monkeypatch.setattr(f"saebench.{module}.product_dtype", lambda device: dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trainer_and_an_estimate_follow_the_machine(
    dtype: str, request_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on(monkeypatch, dtype)
    recipe = installed().recipes["topk"]
    assert Trainer(recipe, recipe.settings(), 16, width=64, seed=0, steps=1).dictionary.dtype == getattr(torch, dtype)
    found = estimate(request_for(dtype=None, tokens=1000))
    assert (found.dtype, found.products) == (dtype, [dtype])


def test_a_run_keeps_the_choice_it_began_with(
    request_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun without bfloat16 units, stopped, and ended on a machine that has them: the bits of the first machine."""

    class Stop(Heard):
        def progress(self, step: int, tokens_per_second: float, lines: list[dict[str, Any]]) -> None:
            if step == 40:
                raise RuntimeError("stopped")

    open_choices = {"dtype": None, "context_batch": None}
    _on(monkeypatch, "float32")
    train(request_for(**open_choices), tmp_path / "whole", Heard())
    with pytest.raises(RuntimeError, match="stopped"):
        train(request_for(**open_choices), tmp_path / "run", Stop())
    assert RunFolder(tmp_path / "run").checkpoint.exists()
    _on(monkeypatch, "bfloat16")
    train(request_for(**open_choices), tmp_path / "run", Heard())
    assert same_weights(tmp_path / "run" / "topk-k4", tmp_path / "whole" / "topk-k4")
    identity = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]
    assert (identity["dtype"], identity["saes"]["topk-k4"]["settings"]["dtype"]) == ("float32", "float32")
    train(request_for(**open_choices), tmp_path / "other", Heard())
    assert not same_weights(tmp_path / "other" / "topk-k4", tmp_path / "whole" / "topk-k4")


def test_an_asked_precision_is_the_runs(request_for: Make, tmp_path: Path) -> None:
    asked = SaeSpec("topk-k4", "topk", 48, 0, {"k": 4, "dtype": "bfloat16"})
    train(request_for(saes=(asked,), tokens=320), tmp_path / "run", Heard())
    with raises(UsageError, "saes.topk-k4.settings.dtype", "bfloat16", "float32"):
        other = SaeSpec("topk-k4", "topk", 48, 0, {"k": 4, "dtype": "float32"})
        train(request_for(saes=(other,), tokens=320), tmp_path / "run", Heard())
    with raises(UsageError, "dtype", "float16"):
        Settings(dtype="float16")


def test_provenance_names_the_processor() -> None:
    assert provenance(torch.device("cpu"))["chip"] == processor_name() != ""
