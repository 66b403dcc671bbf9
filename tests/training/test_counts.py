"""A step's cost by construction: products of kernel size, copies to the host; each cheaper path against the dense one."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from saebench.arithmetic import kernels
from saebench.arithmetic.ranks import variance
from saebench.recipe import Batch
from saebench.training import auxk
from tests.training.test_recipes import RECIPES, WIDTH, data
from tests.training.test_trainer import make


class Counted(TorchDispatchMode):
    """Counts copies to the host, and multiply-adds of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = self.products = 0
        self.work = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name()
        self.copies += name in ("aten::_local_scalar_dense", "aten::item")
        if name.startswith(("aten::mm", "aten::addmm", "aten::linear", "mkldnn::_linear_pointwise")):
            left, right = [a for a in args if isinstance(a, torch.Tensor) and a.dim() == 2][:2]
            self.products += 1
            self.work += left.shape[0] * left.shape[1] * right.numel() // left.shape[1]
        return out


@pytest.mark.parametrize("name", RECIPES)
def test_copies_to_the_host_of_a_step(name: str) -> None:
    """JumpReLU, relu, gated and topk read no number of the device inside their loss; batchtopk's selection reads a few."""
    t = make(name, dead_after=300)
    for i in range(6):
        t.step(data(seed=i))
    with Counted() as count:
        t.step(data(seed=9))
    assert count.copies <= (4 if name in ("batchtopk", "matryoshka") else 1), count.copies


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_top_k_makes_its_product_once_where_a_chunk_holds_it(dtype: torch.dtype, monkeypatch: Any) -> None:
    t = make("batchtopk")
    own, x = t.dictionary, data(200) * t.scale
    arguments = (x, own.b_dec, own.W_enc, own.b_enc, 6, dtype)
    with torch.no_grad(), Counted() as count:
        whole = kernels.encode_batch_top_k(*arguments)
    assert count.products == 1
    monkeypatch.setattr(kernels, "_CHUNK", 50 * WIDTH)
    with torch.no_grad():
        parts = kernels.encode_batch_top_k(*arguments)
    assert torch.equal(whole.layout.indices, parts.layout.indices)
    torch.testing.assert_close(whole.values, parts.values, rtol=1e-6, atol=1e-6)


def test_sparse_auxk_is_the_dense_one_and_multiplies_less() -> None:
    """80 dead latents of which 3 take part: the same loss and gradients to 1e-6, a fraction of the multiply-adds."""
    found: dict[int, Any] = {}
    for limit in (10**9, 16):
        t = make("topk")
        own, x = t.dictionary, data(seed=1) * t.scale
        dead = torch.zeros(WIDTH, dtype=torch.bool)
        dead[:80] = True
        batch = Batch(x, variance(x), 0, 1, dead)
        with pytest.MonkeyPatch.context() as patch, Counted() as count:
            patch.setattr(auxk, "_SPARSE_FROM", limit)
            loss = auxk.auxk_loss(own, batch, x - x.mean(0) + 0.3, 3)
            loss.backward()
        found[limit] = (loss.detach(), {n: p.grad for n, p in own.named_parameters() if p.grad is not None}, count.work)
    dense, sparse = found[10**9], found[16]
    torch.testing.assert_close(sparse[0], dense[0], rtol=1e-6, atol=1e-6)
    assert sparse[1].keys() == dense[1].keys() == {"W_enc", "W_dec", "b_enc", "b_dec"}
    for name, gradient in dense[1].items():
        torch.testing.assert_close(sparse[1][name], gradient, rtol=1e-5, atol=1e-6)
    assert sparse[2] < 0.5 * dense[2]
