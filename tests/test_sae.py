"""The canonical SAE against dense float64 arithmetic, and its sparse latents against dense ones."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saebench.sae import (
    SAE,
    AbsTopK,
    Gated,
    GroupMax,
    Identity,
    JumpReLU,
    Latents,
    LayerNorm,
    NormTopK,
    NoTransform,
    ReLU,
    SignedTopK,
    TokenScale,
    TopK,
    top_k,
)
from tests.raising import raises

D_IN, D_SAE, D_OUT, N, K = 8, 24, 6, 17, 4


def r(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


NORM, THRESHOLD = r(D_SAE).abs() + 0.5, r(D_SAE, seed=1).abs() * 0.5
GATE = (r(D_SAE, seed=2) * 0.3, r(D_SAE, seed=3), r(D_SAE, seed=4))


def keep_best(scores: Tensor, values: Tensor) -> Tensor:
    """Row by row with Python's own sort."""
    out = torch.zeros_like(values)
    for i, row in enumerate(scores.tolist()):
        for j in sorted(range(len(row)), key=row.__getitem__)[-K:]:
            out[i, j] = values[i, j]
    return out


def group_best(pre: Tensor) -> Tensor:
    out, width = torch.zeros_like(pre), pre.shape[1] // K
    for i in range(len(pre)):
        for g in range(K):
            j = max(range(g * width, (g + 1) * width), key=pre[i].tolist().__getitem__)
            out[i, j] = max(float(pre[i, j]), 0)
    return out


ACTIVATIONS: dict[str, tuple[Any, Any]] = {
    "relu": (ReLU(), lambda p: p.clamp(min=0)),
    "identity": (Identity(), lambda p: p),
    "topk": (TopK(K), lambda p: keep_best(p, p.clamp(min=0))),
    "signed": (SignedTopK(K), lambda p: keep_best(p, p)),
    "abs": (AbsTopK(K), lambda p: keep_best(p.abs(), p)),
    "norm": (NormTopK(K, NORM), lambda p: keep_best(p * NORM, p.clamp(min=0))),
    "jumprelu": (JumpReLU(THRESHOLD), lambda p: p * (p > THRESHOLD)),
    "groupmax": (GroupMax(K), group_best),
    "gated": (Gated(*GATE), lambda p: (p * GATE[0].exp() + GATE[2]).clamp(min=0) * (p + GATE[1] > 0)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_against_their_definitions(name: str) -> None:
    activation, definition = ACTIVATIONS[name]
    pre = r(N, D_SAE, seed=9)
    torch.testing.assert_close(activation(pre).dense(), definition(pre))


@pytest.mark.parametrize("name", ["topk", "norm"])
def test_fewer_than_k_positive(name: str) -> None:
    pre = -r(N, D_SAE).abs()
    pre[:, 3] = 1.0
    latents = ACTIVATIONS[name][0](pre)
    assert latents.counts().tolist() == [1] * N
    assert set(latents.indices.tolist()) == {3}


def layer_norm(x: Tensor, eps: float, divisor: int) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(-1, keepdim=True)
    sd = ((x - mean).square().sum(-1, keepdim=True) / divisor).sqrt()
    return (x - mean) / (sd + eps), mean, sd


def test_layer_norm_in_float64() -> None:
    x = r(N, D_IN)
    for transform in (LayerNorm(0.1), LayerNorm(0.1, unbiased=False), LayerNorm(0.1, eps_on_output=True)):
        u, mean, sd = layer_norm(x.double(), 0.1, D_IN - transform.unbiased)
        found, stats = transform.forward(x)
        torch.testing.assert_close(found.double(), u, rtol=1e-6, atol=1e-6)
        back = u * (sd + 0.1 if transform.eps_on_output else sd) + mean
        torch.testing.assert_close(transform.inverse(found, stats).double(), back, rtol=1e-6, atol=1e-6)
    found, stats = LayerNorm(0.1, restores=False).forward(x)
    assert torch.equal(LayerNorm(0.1, restores=False).inverse(found, stats), found)


def test_token_scale() -> None:
    x = r(N, D_IN) * 7
    u, stats = TokenScale().forward(x)
    torch.testing.assert_close(u.norm(dim=-1), torch.full((N,), D_IN**0.5))
    torch.testing.assert_close(TokenScale().inverse(u, stats), x)
    assert torch.equal(TokenScale(restores=False).inverse(u, stats), u)


def an_sae(transform: Any = NoTransform(), subtracts: bool = True, skip: bool = False, d_out: int = D_IN) -> SAE:  # noqa: B008
    return SAE(
        r(D_IN, D_SAE), r(D_SAE, d_out), r(D_SAE, seed=5), r(d_out, seed=6), TopK(K), subtracts, transform,
        r(D_IN, d_out, seed=7) if skip else None,
    )  # fmt: skip


@pytest.mark.parametrize("transform", [NoTransform(), LayerNorm(0.1), TokenScale()], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_whole_sae_in_float64(transform: Any, subtracts: bool, skip: bool) -> None:
    sae, x = an_sae(transform, subtracts, skip), r(3, 5, D_IN) * 3
    wide = sae.to("cpu", torch.float64)
    u, stats = transform.forward(x.double())
    pre = (u - subtracts * wide.b_dec) @ wide.W_enc + wide.b_enc
    z = keep_best(pre.reshape(-1, D_SAE), pre.reshape(-1, D_SAE).clamp(min=0)).reshape(3, 5, D_SAE)
    out = transform.inverse(z @ wide.W_dec + wide.b_dec, stats)
    if wide.W_skip is not None:
        out = out + x.double() @ wide.W_skip
    latents = sae.encode(x)
    assert latents.shape == (3, 5, D_SAE)
    torch.testing.assert_close(latents.dense().double(), z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x).double(), out, rtol=1e-5, atol=1e-5)
    if skip or not isinstance(transform, NoTransform):
        with raises(ValueError, "needs x"):
            sae.decode(latents)


def test_another_output_width() -> None:
    sae, x = an_sae(subtracts=False, skip=True, d_out=D_OUT), r(4, D_IN)
    assert sae(x).shape == (4, D_OUT)
    with raises(ValueError, "cannot subtract"):
        an_sae(subtracts=True, d_out=D_OUT)
    with raises(ValueError, "b_enc has shape"):
        dataclasses.replace(sae, b_enc=torch.zeros(3))


def test_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = an_sae(), r(50, D_IN)
    whole = sae.encode(x)
    monkeypatch.setattr("saebench.sae._DENSE_ELEMENTS", D_SAE * 7)
    parts = sae.encode(x)
    assert torch.equal(parts.indices, whole.indices)
    assert torch.equal(parts.offsets, whole.offsets)
    torch.testing.assert_close(parts.values, whole.values)
    empty = sae.encode(torch.empty(0, D_IN))
    assert empty.shape == (0, D_SAE)
    assert sae.decode(empty).shape == (0, D_IN)


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(1, 9), st.integers(0, 2**16))
def test_latents_are_their_dense_form(n: int, d: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=generator) * (torch.rand(n, d, generator=generator) < 0.5)
    mask = torch.rand(n, generator=generator) < 0.5
    latents = Latents.from_dense(z)
    assert torch.equal(latents.dense(), z)
    assert torch.equal(latents.counts(), (z != 0).sum(1))
    assert torch.equal(latents.select(mask).dense(), z[mask])
    assert torch.equal(Latents.concatenate([latents, latents]).dense(), torch.cat([z, z]))
    assert latents.reshape(1, n).dense().shape == (1, n, d)
    assert latents.rows().tolist() == (z != 0).nonzero()[:, 0].tolist()
    with raises(ValueError, "do not fill"):
        latents.reshape(n + 1)


def test_identity_is_the_function_and_nothing_else() -> None:
    sae = an_sae()
    assert sae.sha256() == an_sae().sha256()
    named = dataclasses.replace(sae, metadata=dataclasses.replace(sae.metadata, path="elsewhere", model="m"))
    assert named.sha256() == sae.sha256()
    changed = [
        dataclasses.replace(sae, activation=TopK(K + 1)),
        dataclasses.replace(sae, activation=SignedTopK(K)),
        dataclasses.replace(sae, subtracts_b_dec=False),
        dataclasses.replace(sae, transform=LayerNorm(1e-5)),
        dataclasses.replace(sae, transform=LayerNorm(1e-6)),
        dataclasses.replace(sae, b_enc=sae.b_enc.nextafter(torch.tensor(9.0))),
        dataclasses.replace(sae, W_skip=torch.zeros(D_IN, D_IN)),
    ]
    assert len({s.sha256() for s in [sae, *changed]}) == 1 + len(changed)
    transposed = dataclasses.replace(sae, W_enc=sae.W_enc.T.contiguous().T)
    assert transposed.sha256() == sae.sha256()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 400), st.integers(1, 70), st.integers(0, 2**16), st.booleans())
def test_top_k_is_exact(n: int, d: int, k: int, seed: int, ties: bool) -> None:
    scores = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    if ties:
        scores = scores.round()
    k = min(k, d)
    values, indices = top_k(scores, k)
    assert torch.equal(values.sort(descending=True).values, scores.topk(k).values)
    assert torch.equal(scores.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_reprs_are_short() -> None:
    from saebench.testing import random_sae

    sae = random_sae(model="tiny", hook="blocks.1.hook_resid_post")
    assert repr(sae) == "SAE(32 → 64, TopK, blocks.1.hook_resid_post of tiny)"
    z = sae.encode(torch.randn(5, 32))
    assert repr(z) == f"Latents(shape=(5, 64), fire={len(z.values)})"
