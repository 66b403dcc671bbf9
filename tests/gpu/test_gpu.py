"""The same numbers on a GPU as on a CPU, in float32, to 1e-4."""

import numpy as np
import pytest
import torch

import saebench
from saebench.testing import random_sae, tiny_llama
from tests.conftest import HOOK

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


@pytest.fixture
def exact_products(monkeypatch):
    """Full float32 matrix products: TF32 keeps ten bits of the mantissa only."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("hook", [HOOK, "blocks.1.hook_mlp_out", "blocks.2.hook_resid_mid"])
def test_gpu_equals_cpu(hook, exact_products, tokens, tmp_path):
    folder = tiny_llama(tmp_path / "model")
    ids = tmp_path / "ids.npy"
    np.save(ids, np.load(tokens))
    records = {
        device: saebench.run(random_sae(seed=1), model=str(folder), hook=hook, tokens=ids, dtype="float32", device=device,
                             results=tmp_path / device)[0] for device in ("cpu", "cuda")
    }  # fmt: skip
    assert records["cpu"].fingerprint == records["cuda"].fingerprint
    on_cpu = {(s["metric"], s["key"], s["at"]): s["value"] for s in records["cpu"].scores}
    for score in records["cuda"].scores:
        expected = on_cpu[score["metric"], score["key"], score["at"]]
        assert score["value"] == pytest.approx(expected, rel=1e-4, abs=1e-6), score["key"]
