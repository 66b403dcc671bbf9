"""Kernels against plain autograd in float64, and selection against a sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saebench.arithmetic import kernels
from saebench.arithmetic.selection import above, top_k

N, D, WIDTH = 40, 12, 64


def parameters(seed: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    shapes = ((N, D), (D,), (WIDTH, D), (WIDTH,), (WIDTH, D))
    x, b_dec, W_enc, b_enc, W_dec = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    return x, *(t.requires_grad_() for t in (b_dec, W_enc, 0.3 * b_enc.detach(), W_dec))


def plain(x, b_dec, W_enc, b_enc, W_dec, k: int, batch: bool) -> torch.Tensor:
    """The same reconstruction with dense autograd."""
    pre = (x - b_dec) @ W_enc.T + b_enc
    least = pre.flatten().sort().values[-k * N] if batch else pre.sort(1).values[:, -k, None]
    return torch.where(pre >= least, pre.relu(), 0) @ W_dec + b_dec


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("k", [1, 5, 50])
def test_gradients_are_those_of_plain_autograd(batch, k):
    x, *own = parameters()
    encode = kernels.encode_batch_top_k if batch else kernels.encode_top_k
    weight = torch.randn(N, D, dtype=torch.float64)
    b_dec, W_enc, b_enc, W_dec = own
    codes = encode(x, b_dec, W_enc, b_enc, k, torch.float64)
    found = kernels.decode(codes, W_dec, b_dec)
    wanted = plain(x, *own, k, batch)
    assert torch.allclose(found, wanted, atol=1e-12)
    got = torch.autograd.grad((found * weight).pow(2).sum(), own)
    want = torch.autograd.grad((wanted * weight).pow(2).sum(), own)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_prefixes_have_the_gradients_of_plain_autograd():
    x, b_dec, W_enc, b_enc, W_dec = parameters(1)
    codes = kernels.encode_top_k(x, b_dec, W_enc, b_enc, 8, torch.float64)
    low, high = codes.between(0, 20), codes.between(20, WIDTH)
    zero = torch.zeros(D, dtype=torch.float64)
    whole = kernels.decode(low, W_dec[:20], zero) + kernels.decode(high, W_dec[20:], zero) + b_dec
    wanted = plain(x, b_dec, W_enc, b_enc, W_dec, 8, False)
    assert torch.allclose(whole, wanted, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(o.pow(3).sum(), [W_enc, W_dec]) for o in (whole, wanted)), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), groups=st.integers(1, 40), k=st.integers(1, 16), coarse=st.booleans())
def test_top_k_finds_the_k_largest_ties_and_negatives_too(dtype, seed, groups, k, coarse):
    scores = torch.randn(7, 16 * groups, generator=torch.Generator().manual_seed(seed)) - 0.5
    scores = (scores.round(decimals=1) if coarse else scores).to(dtype)
    found = top_k(scores, k)
    assert len({(i, int(j)) for i, row in enumerate(found) for j in row}) == 7 * k
    # Negative ones never enter a code: among them, any will do.
    values = scores.gather(1, found).float().clamp_min(0).sort(1).values
    assert torch.equal(values, scores.float().clamp_min(0).sort(1).values[:, -k:])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), width=st.sampled_from([16, 48, 50, 640]), bound=st.floats(-1, 4))
def test_above_is_a_mask(seed, width, bound):
    scores = torch.randn(9, width, generator=torch.Generator().manual_seed(seed))
    row, column = above(scores, bound)
    assert torch.equal(torch.stack([row, column], 1), (scores > bound).nonzero())


def test_bfloat16_selects_almost_the_same_and_values_are_exact():
    g = torch.Generator().manual_seed(0)
    x, W = torch.randn(600, 64, generator=g), torch.nn.functional.normalize(torch.randn(2048, 64, generator=g), dim=1)
    b_dec, b_enc = torch.randn(64, generator=g), 0.1 * torch.randn(2048, generator=g)
    codes = kernels.encode_top_k(x, b_dec, W, b_enc, 32, torch.bfloat16)
    pre = (x - b_dec).double() @ W.double().T + b_enc
    rows = torch.arange(600).repeat_interleave(32)
    assert torch.allclose(codes.values.double(), pre[rows, codes.layout.indices].relu(), atol=1e-5)
    best = pre.topk(32, dim=1).indices
    shared = (codes.layout.indices.view(600, 32)[:, :, None] == best[:, None, :]).any(2).float().mean()
    assert shared > 0.98


def test_batch_top_k_keeps_as_many_as_asked_in_float32_and_bfloat16():
    g = torch.Generator().manual_seed(0)
    x, W = torch.randn(500, 32, generator=g), torch.nn.functional.normalize(torch.randn(640, 32, generator=g), dim=1)
    x[:50] *= 20  # rows are not alike: the first guess of the bound is far too high
    zeros = torch.zeros(32), torch.zeros(640)
    pre = x @ W.T
    least = pre.flatten().sort().values[-500 * 8]
    for dtype in (torch.float32, torch.bfloat16):
        codes = kernels.encode_batch_top_k(x, zeros[0], W, zeros[1], 8, dtype)
        assert abs(len(codes.values) - 4000) <= (1 if dtype == torch.float32 else 40)
        assert float(codes.values.min()) == pytest.approx(float(least), rel=1e-5 if dtype == torch.float32 else 1e-2)
