"""Per-token losses against float64, whatever the chunk, and never more than a chunk of logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saebench.forward import losses
from saebench.forward.losses import log_probabilities, next_tokens, spliced_losses


class Head:
    """A head that remembers the shapes of the logits it made."""

    def __init__(self, d: int, vocabulary: int, seed: int = 0, scale: float = 1.0) -> None:
        self.weight = scale * torch.randn(vocabulary, d, generator=torch.Generator().manual_seed(seed))
        self.vocabulary = vocabulary
        self.made: list[tuple[int, int]] = []

    def logits(self, hidden: Tensor, tokens: slice = slice(None)) -> Tensor:
        out = hidden @ self.weight[tokens].T
        self.made.append((out[..., 0].numel(), out.shape[-1]))
        return out


def setup(b: int, t: int, k: int, vocabulary: int, seed: int = 0, scale: float = 1.0):
    g = torch.Generator().manual_seed(seed)
    head = Head(6, vocabulary, seed, scale)
    streams = [torch.randn(b, t, 6, generator=g) for _ in range(k + 1)]
    ids = torch.randint(0, vocabulary, (b, t), generator=g)
    return head, streams, ids, torch.rand(b, t, generator=g) < 0.7


def direct(head: Head, clean: Tensor, spliced: Tensor, ids: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of `spliced` and KL from `clean`, token by token in float64."""
    ce, kl = (torch.zeros(ids.shape, dtype=torch.float64) for _ in range(2))
    for b, t in scored.nonzero().tolist():
        logits = [h[b, t].double() @ head.weight.double().T for h in (clean, spliced)]
        p, q = (torch.log_softmax(v, -1) for v in logits)
        target = ids[b, min(t + 1, ids.shape[1] - 1)]
        ce[b, t] = -q[target]
        kl[b, t] = (p.exp() * (p - q)).sum()
    return ce, kl


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(2, 40),
    st.tuples(st.integers(1, 17), st.integers(1, 41)),
    st.integers(0, 99),
)
def test_equal_to_float64_in_any_block(b: int, t: int, k: int, vocabulary: int, block: tuple[int, int], seed: int):
    head, (clean, *spliced), ids, scored = setup(b, t, k, vocabulary, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(losses._BLOCK, "cpu", block)
        got = spliced_losses(head, clean, spliced, ids, scored)
    pairs = [(got.clean, direct(head, clean, clean, ids, scored)[0])]
    for i, h in enumerate(spliced):
        ce, kl = direct(head, clean, h, ids, scored)
        pairs += [(got.spliced[i], ce), (got.kl[i], kl)]
    assert len(got.spliced) == len(got.kl) == k
    for value, expected in pairs:
        assert value.shape == (b, t)
        assert value.dtype == torch.float32
        assert torch.allclose(value.double(), expected, rtol=1e-6, atol=1e-5)  # float32 logits near 10
        assert bool((value[~scored] == 0).all())


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_nearly_equal_streams_have_a_kl_near_zero(scale: float):
    head, (clean,), ids, scored = setup(2, 8, 0, 500, scale=scale)
    near = clean + 1e-4 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    got = spliced_losses(head, clean, [clean, near], ids, scored)
    assert bool((got.kl[0].abs() < 1e-5 * scale).all())
    expected = direct(head, clean, near, ids, scored)[1]
    assert torch.allclose(got.kl[1].double(), expected, rtol=0.05, atol=3e-6 * scale)


def test_no_more_than_one_block_of_logits_at_a_time(monkeypatch: pytest.MonkeyPatch):
    head, (clean, *spliced), ids, _ = setup(8, 16, 3, 64)
    monkeypatch.setitem(losses._BLOCK, "cpu", (10, 24))
    spliced_losses(head, clean, spliced, ids, torch.ones(8, 16, dtype=torch.bool))
    assert max(rows for rows, _ in head.made) == 10
    assert max(width for _, width in head.made) == 24
    assert sum(rows * width for rows, width in head.made) == 4 * 128 * 64  # and each logit once


def test_logits_too_large_to_exponentiate():
    """In float32 exp(89) overflows and exp(−104) is 0: only differences from the largest logit may be exponentiated."""
    head, (clean, near), ids, scored = setup(2, 8, 1, 300, scale=200.0)
    assert clean.flatten(0, 1).matmul(head.weight.T).abs().max() > 1000
    got = spliced_losses(head, clean, [near], ids, scored)
    ce, kl = direct(head, clean, near, ids, scored)
    assert torch.allclose(got.spliced[0].double(), ce, rtol=1e-5, atol=1e-3)
    assert torch.allclose(got.kl[0].double(), kl, rtol=1e-5, atol=1e-3)


def test_the_same_bits_for_rows_in_any_company(monkeypatch: pytest.MonkeyPatch):
    """The sums go over fixed blocks of the vocabulary, so what else is in the batch is nothing to a token's loss."""
    head, (clean, *spliced), ids, scored = setup(6, 9, 2, 333)
    monkeypatch.setitem(losses._BLOCK, "cpu", (1024, 50))
    logits = [(h @ head.weight.T) for h in (clean, *spliced)]  # a matrix product may round by its shape; made once here

    class Table:
        vocabulary = 333

        def logits(self, hidden: Tensor, tokens: slice = slice(None)) -> Tensor:
            return hidden[..., tokens]

    whole = spliced_losses(Table(), logits[0], logits[1:], ids, scored)
    for i in range(6):
        alone = spliced_losses(
            Table(), logits[0][i : i + 1], [h[i : i + 1] for h in logits[1:]], ids[i : i + 1], scored[i : i + 1]
        )
        assert torch.equal(alone.clean[0], whole.clean[i])
        for a, w in zip(alone.spliced + alone.kl, whole.spliced + whole.kl, strict=True):
            assert torch.equal(a[0], w[i])


def test_unscored_rows_are_never_sent_through_the_head():
    head, (clean,), ids, _ = setup(2, 5, 0, 7)
    got = spliced_losses(head, clean, [], ids, torch.zeros(2, 5, dtype=torch.bool))
    assert not sum(rows for rows, _ in head.made)
    assert not got.clean.any()


def test_next_tokens_and_log_probabilities():
    ids = torch.tensor([[5, 6, 7], [1, 2, 3]])
    assert next_tokens(ids)[:, :-1].tolist() == [[6, 7], [2, 3]]
    head, (clean,), _, _ = setup(1, 4, 0, 9)
    expected = torch.log_softmax(clean[0].double() @ head.weight.double().T, -1)
    assert torch.allclose(log_probabilities(head, clean[0]).double(), expected, atol=1e-6)
