"""A tiny run that every test here starts from: a random Llama, random token ids, one topk SAE."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from saebench.training.checkpoints import RunFolder
from saebench.training.request import SaeSpec, TrainRequest
from saebench.training.run import train

HOOK = "blocks.1.hook_resid_post"


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[int] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def stepped(self, step: int) -> None: ...

    def capturing(self, done: int, total: int) -> None: ...

    def begin(self, steps: int, done: int) -> None:
        self.steps.append(done)

    def progress(self, step: int, tokens_per_second: float, lines: list[dict[str, Any]]) -> None:
        self.steps.append(step)

    def end(self) -> None: ...

    def logged(self, folder: RunFolder) -> None: ...


def same_weights(a: Path, b: Path) -> bool:
    """Whether two SAE folders hold the same tensors to the bit."""
    first, second = (load_file(folder / "sae_weights.safetensors") for folder in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


@pytest.fixture(scope="session")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 contexts of 16 ids; the first of each is the tiny Llama's BOS."""
    path = tmp_path_factory.mktemp("train") / "ids.npy"
    tokens = np.random.default_rng(3).integers(3, 97, (200, 16))
    tokens[:, 0] = 1
    np.save(path, tokens)
    return path


@pytest.fixture
def request_for(llama: Path, ids: Path) -> Callable[..., TrainRequest]:
    def make(**changes: Any) -> TrainRequest:
        spec = SaeSpec("topk-k4", "topk", 48, 0, {"k": 4, "dead_after": 500})
        settings: dict[str, Any] = {
            "model": str(llama), "hook": HOOK, "saes": (spec,), "data": ids, "batch_size": 32, "chunk_contexts": 30,
            "context_batch": 8, "checkpoint_every": 15, "log_every": 5, "dtype": "float32", "device": "cpu",
        }  # fmt: skip
        return TrainRequest(**(settings | changes))

    return make


@pytest.fixture(scope="session")
def whole(llama: Path, ids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `request_for()` with three epochs, never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    spec = SaeSpec("topk-k4", "topk", 48, 0, {"k": 4, "dead_after": 500})
    request = TrainRequest(
        model=str(llama), hook=HOOK, saes=(spec,), data=ids, epochs=3, batch_size=32, chunk_contexts=30, context_batch=8,
        checkpoint_every=15, log_every=5, dtype="float32", device="cpu",
    )  # fmt: skip
    train(request, out, Heard())
    return out
