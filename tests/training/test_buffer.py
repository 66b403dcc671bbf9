"""The buffer hands out every activation once, in an order that mixes documents, and goes on where it stood."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saebench.training.buffer import Buffer
from saebench.training.text import context_order


class Numbered:
    """Chunks of unlike sizes whose rows are numbers: epoch, and place in it."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.starts = np.cumsum([0, *sizes])
        self.calls: list[int] = []

    @property
    def per_epoch(self) -> int:
        return len(self.sizes)

    def chunk(self, number: int) -> torch.Tensor:
        self.calls.append(number)
        epoch, i = divmod(number, len(self.sizes))
        return torch.arange(self.starts[i], self.starts[i + 1]).float()[:, None] + 10_000 * epoch


def _take(buffer: Buffer, batches: int) -> list[float]:
    out: list[float] = []
    taken = 0
    while taken < batches:
        for batch in buffer.batches():
            out += batch[:, 0].tolist()
            taken += 1
            if taken == batches:
                break
    return out


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), batch=st.integers(1, 25), seed=st.integers(0, 9))
def test_each_activation_comes_once_an_epoch(sizes: list[int], batch: int, seed: int) -> None:
    chunks = Numbered(sizes)
    total = sum(sizes)
    batches = 2 * total // batch
    if batches == 0:
        return
    seen = _take(Buffer(chunks, batch, seed), batches)
    assert len(seen) == len(set(seen)) == batches * batch
    left = 2 * total - len(seen)
    everything = {float(e * 10_000 + i) for e in range(2) for i in range(total)}
    assert set(seen) <= everything
    assert len(everything - set(seen)) == left < batch


@given(stop=st.integers(1, 30), batch=st.integers(1, 20))
def test_restored_it_gives_the_same_batches(stop: int, batch: int) -> None:
    sizes = [23, 40, 7, 31]
    whole = _take(Buffer(Numbered(sizes), batch, 5), stop + 12)
    first = Buffer(Numbered(sizes), batch, 5)
    before = _take(first, stop)
    state = first.state()
    second = Buffer(Numbered(sizes), batch, 5)
    second.restore(state, torch.device("cpu"))
    assert before + _take(second, 12) == whole


def test_looking_ahead_takes_nothing_and_runs_nothing_twice() -> None:
    chunks = Numbered([50, 50])
    buffer = Buffer(chunks, 10, 0)
    sample = buffer.sample(25)[:, 0].tolist()
    assert _take(buffer, 5)[:25] == sample
    assert chunks.calls == [0]


def test_batches_mix_the_whole_chunk() -> None:
    batch = np.array(_take(Buffer(Numbered([4000]), 1000, 0), 1))
    # 1000 of 4000 without replacement: each quarter's share is 250 ± 12 (hypergeometric), five sigmas allowed.
    shares = np.histogram(batch, 4, (0, 4000))[0]
    assert np.abs(shares - 250).max() < 60
    assert abs(np.corrcoef(np.arange(1000), batch)[0, 1]) < 0.15


def test_order_is_new_each_epoch_and_complete() -> None:
    first, second = context_order(1000, 7, 0), context_order(1000, 7, 1)
    assert sorted(first) == sorted(second) == list(range(1000))
    assert (first == second).mean() < 0.02
    assert (context_order(1000, 7, 0) == first).all()
    assert (context_order(1000, 8, 0) == first).mean() < 0.02


def test_other_seed_other_batches() -> None:
    assert _take(Buffer(Numbered([60]), 10, 0), 1) != _take(Buffer(Numbered([60]), 10, 1), 1)


@pytest.mark.parametrize("count", [1, 3])
def test_chunks_smaller_than_a_batch_are_gathered(count: int) -> None:
    buffer = Buffer(Numbered([3] * 10), 7, 0)
    assert len(set(_take(buffer, count))) == 7 * count
