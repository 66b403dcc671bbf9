"""The script that measures training on an accelerator, at sizes that take a CPU a moment."""

from pathlib import Path

import pytest
from transformers import LlamaConfig

GPU = Path(__file__).resolve().parents[1] / "gpu"


def test_the_script_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GPU))
    import train_speed

    tiny = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    found = train_speed.measure(
        tiny, "blocks.0.hook_resid_post", width=64, k=4, batch=256, contexts=200, device="cpu", dtype="float32"
    )
    assert found["activations"] == int(200 * 128 * 0.998) // 256 * 256
    assert 0 < found["model_share"] < 1
    whole = found["seconds"]["activations"] + found["seconds"]["sae"]
    assert found["activations_per_second"] == pytest.approx(found["activations"] / whole)
    assert found["limit_activations_per_second"] == pytest.approx(
        found["activations_per_second"] / found["model_share"]
    )
