"""The CPU's float32 matrix product: the same numbers as PyTorch's own, and only where it is meant to be used."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from saebench.arithmetic.linear import linear, use_onednn


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(5,), (2, 3), (1, 1, 4)])
def test_linear_is_a_matrix_product(leading: tuple[int, ...], bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(*s, generator=generator) for s in ((*leading, 40), (17, 40), (17,)))
    got = linear(x, w, b if bias else None)
    exact = x.double() @ w.double().T + (b.double() if bias else 0)
    assert got.shape == (*leading, 17)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)


def test_other_dtypes_go_to_pytorch() -> None:
    x, w = torch.randn(3, 8).bfloat16(), torch.randn(4, 8).bfloat16()
    assert torch.equal(linear(x, w), F.linear(x, w))


def test_a_model_computes_the_same_through_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 8, bias=False)).eval()
    x = torch.randn(4, 16)
    with torch.no_grad():
        before = model(x)
        use_onednn(model)
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
