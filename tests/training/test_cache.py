"""Activations cached on disk change no SAE."""

from pathlib import Path

import numpy as np
import pytest

from saebench.training.activations import Activations
from saebench.training.run import train

from .conftest import Heard, same_weights
from .shared import Make


def test_a_cache_changes_nothing_in_the_first_epoch(
    request_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    train(request_for(), tmp_path / "without", Heard())
    train(request_for(cache=cache), tmp_path / "with", Heard())
    assert same_weights(tmp_path / "with" / "topk-k4", tmp_path / "without" / "topk-k4")
    shards = sorted(cache.rglob("*.safetensors"))
    assert len(shards) == 7  # 200 contexts, 30 a chunk
    damaged = shards[2].read_bytes()
    shards[2].write_bytes(damaged[: len(damaged) // 2])
    flipped = bytearray(shards[3].read_bytes())
    flipped[-5] ^= 1
    shards[3].write_bytes(flipped)
    made: list[int] = []
    original = Activations.chunk
    monkeypatch.setattr(Activations, "chunk", lambda self, n: made.append(n) or original(self, n))
    train(request_for(cache=cache), tmp_path / "again", Heard())
    assert made == [2, 3], "only what was damaged is made again"
    assert same_weights(tmp_path / "again" / "topk-k4", tmp_path / "without" / "topk-k4")
    assert shards[2].read_bytes() == damaged


def test_a_cache_of_another_text_is_not_taken(request_for: Make, ids: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    train(request_for(cache=cache), tmp_path / "one", Heard())
    other = tmp_path / "other.npy"
    tokens = np.load(ids)
    tokens[0, 5] = 3 + (tokens[0, 5] - 2) % 90
    np.save(other, tokens)
    train(request_for(cache=cache, data=other), tmp_path / "two", Heard())
    assert len(list(cache.iterdir())) == 2
